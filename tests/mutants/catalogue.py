"""The breakages. Each replaces one text, which occurs exactly once in its file, and names the tests that must fail."""

from dataclasses import dataclass

CLAIMS, RESERVE, RECONCILER = (f"tests/integration/test_{name}.py" for name in ("claims", "reserve", "reconciler"))
CAPS, CIRCUITS, MEMORY = (f"tests/integration/test_{name}.py" for name in ("caps", "circuits", "memory"))
SCHEDULES, TIMETABLE = "tests/integration/test_schedules.py", "tests/unit/test_timetable.py"
TAKING, DRILLING = "tests/backups/test_taking.py", "tests/backups/test_drilling.py"
PRUNING, REQUESTS = "tests/integration/test_pruning.py", "tests/integration/test_requests.py"
CONTAINERS, SANDBOX = "tests/integration/test_container_rows.py", "tests/machines/test_emulator_sandbox.py"
MIDDLEWARE, KEEPER = "tests/serverless/test_middleware.py", "tests/serverless/test_keeper.py"
CLIENT, LIFECYCLE = "tests/machines/test_client.py", "tests/unit/test_lifecycle.py"


@dataclass(frozen=True)
class Mutant:
    """`tests` are ids as pytest takes them; at least one of them must fail once `before` reads `after`."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


MUTANTS = (
    Mutant(
        "a success is written without looking at the epoch",
        "machinequeue/records/claims.py",
        'WHERE id = %s AND epoch = %s AND status = \'RUNNING\'"""',
        'WHERE id = %s AND epoch >= %s AND status = \'RUNNING\'"""',
        (f"{CLAIMS}::test_who_was_presumed_dead_can_change_nothing",),
    ),
    Mutant(
        "a failure is written without looking at the epoch",
        "machinequeue/records/claims.py",
        "held = TaskRun.objects.using(database).filter(pk=run_id, epoch=epoch, status=RunStatus.RUNNING)",
        "held = TaskRun.objects.using(database).filter(pk=run_id, status=RunStatus.RUNNING)",
        (f"{CLAIMS}::test_who_was_presumed_dead_can_change_nothing",),
    ),
    Mutant(
        "a heartbeat extends a lease that is another's",
        "machinequeue/records/claims.py",
        "return TaskRun.objects.using(sql.alias()).filter(pk=held.run_id, epoch=held.epoch, status=RunStatus.RUNNING)",
        "return TaskRun.objects.using(sql.alias()).filter(pk=held.run_id, status=RunStatus.RUNNING)",
        (f"{CLAIMS}::test_who_was_presumed_dead_can_change_nothing",),
    ),
    Mutant(
        "a claim does not lock what it takes",
        "machinequeue/records/claims.py",
        '_take(connection, " FOR UPDATE SKIP LOCKED")',
        '_take(connection, "")',
        (f"{CLAIMS}::test_claimers_at_once_never_get_the_same_run",),
    ),
    Mutant(
        "an older boot of the machine may claim",
        "machinequeue/records/claims.py",
        "WHERE m.id = %s AND m.boot_id = %s AND m.status",
        "WHERE m.id = %s AND m.boot_id >= LEFT(%s, 0) AND m.status",
        (f"{CLAIMS}::test_a_machine_of_an_older_boot_claims_nothing",),
    ),
    Mutant(
        "a machine that retires may claim",
        "machinequeue/records/claims.py",
        "AND m.status IN ('booted', 'idle', 'busy'))",
        "AND m.status IN ('booted', 'idle', 'busy', 'retiring'))",
        (f"{CLAIMS}::test_a_retiring_machine_claims_nothing",),
    ),
    Mutant(
        "a machine claims what is longer than the rest of its life",
        "machinequeue/records/claims.py",
        "AND run_after <= {now} AND timeout <= %s",
        "AND run_after <= {now} AND timeout <> %s",
        (f"{CLAIMS}::test_a_run_longer_than_the_rest_of_the_machine_s_life_is_left_for_another",),
    ),
    Mutant(
        "a small machine takes a run whose task was found to need more",
        "machinequeue/records/claims.py",
        "AND p.memory_mb > CAST(",
        "AND p.memory_mb < CAST(",
        (f"{MEMORY}::test_runs_that_wait_get_what_was_learned_and_a_small_machine_leaves_them",),
    ),
    Mutant(
        "machines are counted without the lock",
        "machinequeue/records/queues.py",
        '    rows.filter(backend="", name=EVERY_QUEUE).update(failures=F("failures"))\n'
        '    rows.filter(backend=group.backend, name=group.queue).update(failures=F("failures"))\n',
        "",
        (f"{RESERVE}::test_any_number_of_dispatchers_reserve_once_for_the_same_demand",),
    ),
    Mutant(
        "two dispatchers may lead",
        "machinequeue/records/dispatchers.py",
        "if rows.filter(leads_until__gt=Now()).exclude(name=name).exists():",
        "if rows.filter(leads_until__gt=Now()).exclude(name=name).count() > 1:",
        (f"{RESERVE}::test_one_dispatcher_leads_at_a_time",),
    ),
    Mutant(
        "a machine that was given up may check in",
        "machinequeue/records/machines.py",
        ".exclude(status__in=(MachineStatus.GONE, MachineStatus.RETIRING))\n    )\n    found = live",
        ")\n    found = live",
        (f"{CLAIMS}::test_a_gone_machine_claims_nothing_and_cannot_check_in",),
    ),
    Mutant(
        "a taken name is not adopted",
        "machinequeue/machines/client.py",
        "        if not _identity(request):\n            raise taken\n",
        "        raise taken\n",
        (f"{CLIENT}::test_a_taken_name_is_adopted_when_the_machine_is_ours",),
    ),
    Mutant(
        "a stranger's machine is adopted",
        "machinequeue/machines/client.py",
        "if machine.metadata.get(IDENTITY_KEY) != _identity(request):",
        "if not machine.id:",
        (f"{CLIENT}::test_a_taken_name_of_somebody_else_is_refused",),
    ),
    Mutant(
        "a list is taken for the truth",
        "machinequeue/reconciler.py",
        "    elif not row.fly_id:\n        return\n",
        "    elif row.fly_id:\n"
        "        yield Repair('note gone', row.name, '', partial(_note_gone, client, row, '', None))\n"
        "        return\n",
        (f"{RECONCILER}::test_an_empty_list_is_no_absence",),
    ),
    Mutant(
        "a late heartbeat alone is death",
        "machinequeue/reconciler.py",
        "if deaf or now - seen[key] >= settings.silent_seconds:",
        "if deaf or now:",
        (f"{RECONCILER}::test_a_run_whose_claim_just_expired_is_left_alone",),
    ),
    Mutant(
        "strangers that carry our metadata are destroyed",
        "machinequeue/reconciler.py",
        'if machine.metadata.get("mq_machine") != name or (why == machines.NO_ROW and young):',
        "if why == machines.NO_ROW and young:",
        (f"{RECONCILER}::test_a_machine_whose_row_is_gone_is_destroyed_and_strangers_are_not",),
    ),
    Mutant(
        "a cancel loses against a retry",
        "machinequeue/lifecycle.py",
        "if cancelled or rule.budget == Budget.NONE:",
        "if rule.budget == Budget.NONE:",
        (f"{CLAIMS}::test_a_requested_cancel_wins_over_every_retry",),
    ),
    Mutant(
        "lost machines are forgiven for ever",
        "machinequeue/lifecycle.py",
        "if lost_attempts >= INFRASTRUCTURE_BUDGET:",
        "if lost_attempts >= 10 * INFRASTRUCTURE_BUDGET:",
        (f"{CLAIMS}::test_a_run_that_loses_three_machines_is_poison", LIFECYCLE),
    ),
    Mutant(
        "memory grows without a bound",
        "machinequeue/conf.py",
        'most = spec.get("max_memory_mb") or spec["memory_mb"]',
        'most = 2 * spec["memory_mb"]',
        (f"{MEMORY}::test_the_largest_size_is_the_end",),
    ),
    Mutant(
        "an open circuit lets every launch through",
        "machinequeue/records/circuits.py",
        "    if waiting is not None:\n        return 0, in_words(waiting)\n",
        "",
        (f"{CIRCUITS}::test_machines_that_do_not_boot_are_tried_less_and_less_until_one_checks_in",),
    ),
    Mutant(
        "a less urgent run makes others retire",
        "machinequeue/records/queues.py",
        "return first is None or (-group.priority, str(group.first)) < (-first[0], str(first[1]))",
        "return True",
        (f"{CAPS}::test_a_less_urgent_run_waits_for_its_turn",),
    ),
    # Schedules
    Mutant(
        "a tick that was won is enqueued again",
        "machinequeue/records/schedules.py",
        "if won is None or not tick.runs:",
        "if not tick.runs:",
        (f"{SCHEDULES}::test_a_tick_that_was_won_is_never_won_again_even_when_a_clock_went_back",),
    ),
    Mutant(
        "who read a schedule before it was changed may take its tick",
        "machinequeue/records/schedules.py",
        "_live().filter(pk=row.pk, revision=row.revision, next_at=row.next_at)",
        "_live().filter(pk=row.pk, next_at=row.next_at)",
        (f"{SCHEDULES}::test_a_change_that_is_not_of_its_times_loses_no_due_tick",),
    ),
    Mutant(
        "the next tick counts from the last one, not from now",
        "machinequeue/schedules.py",
        "timetable.next_tick(rule, row.now)",
        "timetable.next_tick(rule, row.next_at)",
        (f"{SCHEDULES}::test_latest_runs_once_after_a_long_outage_and_says_so",),
    ),
    Mutant(
        "a time that the clock shows twice comes twice",
        "machinequeue/timetable.py",
        "if tick > after:  #",
        "if tick:  #",
        (TIMETABLE,),
    ),
    Mutant(
        "a time that the clock skips comes an hour late",
        "machinequeue/timetable.py",
        "    return _change(place, tick + before - since, tick) or tick",
        "    return tick + (since - before)",
        (f"{TIMETABLE}::test_a_time_that_the_clock_skips_comes_when_it_does",),
    ),
    # Backups
    Mutant(
        "a dump is not of the snapshot that was counted",
        "machinequeue/backups/dump.py",
        ' --snapshot={snapshot}"',
        '"',
        (f"{TAKING}::test_rows_written_meanwhile_are_in_neither_the_counts_nor_the_dump",),
    ),
    Mutant(
        "a drill proves without comparing",
        "machinequeue/backups/drilling.py",
        "    if not differences:\n",
        "    if restored.counts:\n",
        (f"{DRILLING}::test_a_missing_row_is_caught_by_counting",),
    ),
    Mutant(
        "a restored database sweeps its own backup away",
        "machinequeue/backups/taking.py",
        "    return None not in known.values() and",
        "    return None in known.values() and",
        ("tests/backups/test_commands.py::test_a_restored_database_does_not_remove_the_backup_it_came_from",),
    ),
    Mutant(
        "half a backup stays in the storage",
        "machinequeue/backups/taking.py",
        "    if begun is not None and begun.name:\n        _remove(place, begun)\n",
        "",
        (f"{TAKING}::test_a_full_disk_is_said_and_leaves_nothing",),
    ),
    Mutant(
        "a drill empties a database that holds something else",
        "machinequeue/backups/restoring.py",
        'elif schemas - {"public"} or _holds_something(cursor):',
        "elif not schemas:",
        (f"{DRILLING}::test_an_empty_database_is_used_and_emptied_where_none_can_be_made",),
    ),
    Mutant(
        "the only proven backup is pruned",
        "machinequeue/backups/taking.py",
        "    keep |= backups.newest_proven([each.pk for each in stored])\n",
        "",
        (f"{TAKING}::test_old_backups_are_removed_but_for_the_newest_proven",),
    ),
    Mutant(
        "retention may keep no backup at all",
        "machinequeue/backups/retention.py",
        "ordered[: max(rule.newest, 1)]",
        "ordered[: rule.newest]",
        ("tests/backups/test_commands.py::test_the_newest_of_each_period_is_kept",),
    ),
    # Health and doctor
    Mutant(
        "an empty token opens the report",
        "machinequeue/contrib/health/door.py",
        "return bool(token) and constant_time_compare",
        "return constant_time_compare",
        ("tests/health/test_door.py::test_without_a_token_only_staff",),
    ),
    Mutant(
        "what is only degraded answers 503",
        "machinequeue/contrib/health/report.py",
        "return 503 if self.status == Status.FAILURE else 200",
        "return 200 if self.status == Status.OK else 503",
        ("tests/health/test_report.py::test_a_redis_that_is_stopped_degrades",),
    ),
    Mutant(
        "the best answer counts for all",
        "machinequeue/health/answers.py",
        "return max(statuses, key=order.index",
        "return min(statuses, key=order.index",
        ("tests/health/test_answers.py::test_the_worst_of_several",),
    ),
    Mutant(
        "an examination that hangs is passed over in silence",
        "machinequeue/doctor/rounds.py",
        "    if done.wait(seconds):\n",
        "    if done.wait(seconds) or not found:\n",
        ("tests/doctor/test_command.py::test_an_examination_that_hangs_is_left_behind",),
    ),
    # Pruning
    Mutant(
        "a run is pruned while its machine lives",
        "machinequeue/records/pruning.py",
        "filter(old).exclude(Exists(living))",
        "filter(old)",
        (f"{PRUNING}::test_a_run_stays_while_a_machine_exists_that_was_launched_for_it",),
    ),
    Mutant(
        "what is young is pruned",
        "machinequeue/records/pruning.py",
        "Q(status=RunStatus.SUCCESSFUL, finished_at__lt=Now() - ages.successful)",
        "Q(status=RunStatus.SUCCESSFUL)",
        (f"{PRUNING}::test_a_run_that_waited_for_long_is_as_old_as_its_end",),
    ),
    # Code that is not ours
    Mutant(
        "two dispatchers take the same machine",
        "machinequeue/records/machines.py",
        'status=MachineStatus.CREATED, boot_id="", deadline_at__gt=Now())',
        "deadline_at__gt=Now())",
        (f"{CONTAINERS}::test_one_dispatcher_takes_a_machine",),
    ),
    Mutant(
        "a machine is given up under a claim that holds",
        "machinequeue/records/machines.py",
        "status=AttemptStatus.RUNNING, run__lease_expires_at__gt=Now())",
        "status=AttemptStatus.RUNNING, run__lease_expires_at__lt=Now())",
        (f"{CONTAINERS}::test_a_machine_is_abandoned_when_its_dispatcher_is_gone_and_its_claim_is_over",),
    ),
    Mutant(
        "what a machine said that was started again counts",
        "machinequeue/containers/driver.py",
        "return found.state in AT_WORK and _starts(found) == self.starts",
        "return found.state in AT_WORK",
        (f"{REQUESTS}::test_a_machine_that_was_started_again_is_another",),
    ),
    Mutant(
        "code that is not ours gets the app's secrets",
        "machinequeue/dispatch/launch.py",
        "config=config, skip_secrets=True)",
        "config=config)",
        (f"{REQUESTS}::test_a_machine_for_code_that_is_not_ours_is_asked_for_with_nothing_of_ours",),
    ),
    Mutant(
        "code that is not ours gets the dispatcher's env",
        "machinequeue/dispatch/launch.py",
        '"init": {"exec": ["sleep", str(int(self._life(machine)))]},\n',
        '"init": {"exec": ["sleep", str(int(self._life(machine)))]}, "env": self._env(machine),\n',
        (f"{REQUESTS}::test_a_machine_for_code_that_is_not_ours_is_asked_for_with_nothing_of_ours",),
    ),
    Mutant(
        "a sandbox has the computer's network",
        "machinequeue/machines/emulator/walls.py",
        '    "network": 0x40000000,\n',
        "",
        (f"{SANDBOX}::test_there_is_no_network_inside",),
    ),
    # Launches
    Mutant(
        "a task machine gets what is withheld",
        "machinequeue/dispatch/launch.py",
        "self.without(command, {*conf.TOKENS, *settings.withhold_secrets})",
        "self.without(command, conf.TOKENS)",
        (f"{REQUESTS}::test_neither_the_token_nor_what_is_withheld_goes_into_a_task_machine",),
    ),
    Mutant(
        "a task machine inherits the token from the dispatcher's env",
        "machinequeue/dispatch/launch.py",
        "for key, value in self.base.items() if key not in withheld}",
        "for key, value in self.base.items()}",
        (f"{REQUESTS}::test_neither_the_token_nor_what_is_withheld_goes_into_a_task_machine",),
    ),
    Mutant(
        "a machine is launched though nobody knows what it would be given",
        "machinequeue/dispatch/launch.py",
        "            if not self._secrets:\n                raise\n",
        "            if not self._secrets:\n                return []\n",
        (f"{REQUESTS}::test_nothing_is_launched_before_the_names_of_the_secrets_are_known",),
    ),
    # Serverless views
    Mutant(
        "a request that was replayed is replayed again",
        "machinequeue/serverless/middleware.py",
        'if "HTTP_FLY_REPLAY_SRC" in request.META:',
        'if "HTTP_FLY_REPLAY_SOURCE" in request.META:',
        (f"{MIDDLEWARE}::test_served_in_place",),
    ),
    Mutant(
        "a POST is replayed though only GET was named",
        "machinequeue/serverless/middleware.py",
        "if request.method not in found.methods or found.size_key",
        "if found.size_key",
        (f"{MIDDLEWARE}::test_served_in_place",),
    ),
    Mutant(
        "the old machine goes before the new one answers",
        "machinequeue/dispatch/serverless.py",
        "if any(heir.status == Status.READY for heir in heirs):",
        "if heirs:",
        (f"{KEEPER}::test_the_old_machine_stays_until_the_new_one_answers",),
    ),
    Mutant(
        "a server ends during a request",
        "machinequeue/serverless/idle.py",
        "            if count > 0:\n                return 0.0\n",
        "",
        ("tests/serverless/test_idle_clock.py::test_a_request_in_progress_in_any_worker_keeps_all_awake",),
    ),
    Mutant(
        "a response counts as over before its last byte",
        "machinequeue/serverless/idle.py",
        "return _Body(application(environ, start_response), clock.end)",
        "return _Body(application(environ, start_response), clock.end() or _nothing)",
        ("tests/serverless/test_idle_clock.py::test_a_response_is_in_progress_until_it_is_closed",),
    ),
    # Commands
    Mutant(
        "a command that failed has succeeded",
        "machinequeue/contrib/commands.py",
        "        if code == 0:\n            return 0\n",
        "        if code >= 0:\n            return 0\n",
        ("tests/integration/test_commands.py::test_how_a_command_ends_is_how_its_run_ends",),
    ),
)
