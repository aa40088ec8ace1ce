"""The shape of the tables. Only `records` writes them; read them through `records` too.

Columns that the database fills (`db_default`) are left out of the INSERT of an enqueue, which keeps it short.
"""

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from machinequeue.lifecycle import (
    AttemptStatus,
    BackupKind,
    BackupStatus,
    CircuitKind,
    DrillStatus,
    MachineStatus,
    Misfire,
    RunStatus,
    ServerlessStatus,
)

PATH_LENGTH = 255
NAME_LENGTH = 63


class TaskRun(models.Model):
    """One enqueued call of a task."""

    id = models.UUIDField(primary_key=True, editable=False)
    task = models.CharField(_("task"), max_length=PATH_LENGTH)
    args = models.JSONField(_("arguments"))
    kwargs = models.JSONField(_("keyword arguments"))
    backend = models.CharField(_("backend"), max_length=NAME_LENGTH)
    queue = models.CharField(_("queue"), max_length=NAME_LENGTH)
    priority = models.SmallIntegerField(_("priority"), db_default=0)
    run_after = models.DateTimeField(_("run after"), db_default=Now())
    spec = models.JSONField(_("machine asked for"))
    spec_key = models.CharField(_("spec key"), max_length=16)
    timeout = models.FloatField(_("timeout"), help_text=_("Seconds."))
    max_attempts = models.SmallIntegerField(_("attempts allowed"))
    task_attempts = models.SmallIntegerField(_("attempts charged to the task"), db_default=0)
    lost_attempts = models.SmallIntegerField(_("attempts lost with their machine"), db_default=0)
    status = models.CharField(_("status"), max_length=10, choices=RunStatus, db_default=RunStatus.READY)
    epoch = models.IntegerField(_("epoch"), db_default=0)
    lease_expires_at = models.DateTimeField(_("claim lease until"), null=True)
    enqueued_at = models.DateTimeField(_("enqueued"), db_default=Now())
    started_at = models.DateTimeField(_("started"), null=True)
    last_attempted_at = models.DateTimeField(_("last attempted"), null=True)
    finished_at = models.DateTimeField(_("finished"), null=True)
    expires_at = models.DateTimeField(_("expires"), null=True)
    return_value = models.JSONField(_("return value"), null=True)
    progress = models.JSONField(_("progress"), null=True)
    metadata = models.JSONField(_("metadata"), null=True)
    checkpoint = models.JSONField(_("checkpoint"), null=True)
    cancel_requested_at = models.DateTimeField(_("cancel requested"), null=True)
    unique_key = models.CharField(_("unique key"), max_length=PATH_LENGTH, null=True)  # noqa: DJ001 - NULLs never collide
    reason = models.TextField(_("reason"), db_default="")

    class Meta:
        verbose_name = _("run")
        verbose_name_plural = _("runs")
        permissions = (("retry_taskrun", "Can retry run"), ("cancel_taskrun", "Can cancel run"))
        constraints = (
            models.CheckConstraint(condition=Q(status__in=RunStatus.values), name="mq_run_status"),
            models.CheckConstraint(
                condition=~Q(status=RunStatus.RUNNING) | Q(lease_expires_at__isnull=False), name="mq_run_running_leased"
            ),
            models.CheckConstraint(
                condition=Q(status__in=(RunStatus.READY, RunStatus.RUNNING), finished_at__isnull=True)
                | Q(~Q(status__in=(RunStatus.READY, RunStatus.RUNNING)), finished_at__isnull=False),
                name="mq_run_finished_at",
            ),
            models.UniqueConstraint(
                fields=["task", "unique_key"],
                condition=Q(status__in=(RunStatus.READY, RunStatus.RUNNING), unique_key__isnull=False),
                name="mq_run_unique_key",
            ),
        )
        indexes = (
            # The claim's question; finished rows are not in it, so that it never grows with them.
            models.Index(
                F("queue"),
                F("spec_key"),
                F("priority").desc(),
                F("id"),
                condition=Q(status=RunStatus.READY),
                name="mq_run_ready",
            ),
            models.Index(fields=["lease_expires_at"], condition=Q(status=RunStatus.RUNNING), name="mq_run_running"),
        )

    def __str__(self) -> str:
        return f"{self.task} {self.id}"


class Attempt(models.Model):
    """One try of a run by one process."""

    run = models.ForeignKey(TaskRun, models.CASCADE, related_name="attempts", verbose_name=_("run"))
    epoch = models.PositiveIntegerField(_("number"))
    machine = models.ForeignKey(
        "Machine", models.SET_NULL, null=True, related_name="attempts", verbose_name=_("machine")
    )
    boot_id = models.CharField(_("boot id"), max_length=32)
    status = models.CharField(_("status"), max_length=13, choices=AttemptStatus, db_default=AttemptStatus.RUNNING)
    claimed_at = models.DateTimeField(_("claimed"), db_default=Now())
    finished_at = models.DateTimeField(_("finished"), null=True)
    stages = models.JSONField(_("stages"), null=True, help_text=_("Seconds since the claim, by stage."))
    pid = models.IntegerField(_("process"), null=True)
    exit_code = models.IntegerField(_("exit code"), null=True)
    signal = models.IntegerField(_("signal"), null=True)
    peak_memory_mb = models.PositiveIntegerField(_("peak memory, MB"), null=True)
    error = models.CharField(_("error"), max_length=PATH_LENGTH, db_default="")
    traceback = models.TextField(_("traceback"), db_default="")
    diagnosis = models.JSONField(_("diagnosis"), null=True)
    seconds = models.FloatField(_("seconds"), null=True)
    cost = models.DecimalField(_("cost, USD"), max_digits=14, decimal_places=8, null=True)

    class Meta:
        verbose_name = _("attempt")
        verbose_name_plural = _("attempts")
        constraints = (
            models.UniqueConstraint(fields=["run", "epoch"], name="mq_attempt_epoch"),
            models.CheckConstraint(condition=Q(status__in=AttemptStatus.values), name="mq_attempt_status"),
        )

    def __str__(self) -> str:
        return f"{self.run_id}/{self.epoch}"


class OutputChunk(models.Model):
    """A piece of what an attempt printed, in order of `id`."""

    attempt = models.ForeignKey(Attempt, models.CASCADE, related_name="output", verbose_name=_("attempt"))
    text = models.TextField(_("text"))
    dropped = models.PositiveIntegerField(_("bytes dropped before it"), db_default=0)
    written_at = models.DateTimeField(_("written"), db_default=Now())

    class Meta:
        verbose_name = _("output")
        verbose_name_plural = _("output")

    def __str__(self) -> str:
        return self.text[:80]


class OutputPiece(models.Model):
    """What a command wrote to one of its streams, byte for byte, in order of `id`. No page shows it: nothing is
    translated.
    """

    attempt = models.ForeignKey(Attempt, models.CASCADE, related_name="pieces")
    stream = models.CharField(max_length=6, choices=(("stdout", "stdout"), ("stderr", "stderr")))
    position = models.BigIntegerField(help_text="Bytes of the stream before it, those too that were not kept.")
    data = models.BinaryField()
    ended = models.BooleanField(db_default=False, help_text="The end of the stream; its position is the length.")
    written_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = (models.CheckConstraint(condition=Q(stream__in=("stdout", "stderr")), name="mq_piece_stream"),)

    def __str__(self) -> str:
        return f"{self.stream} {self.position}"


class Machine(models.Model):
    """One VM that we created, or are about to create."""

    name = models.CharField(_("name"), max_length=NAME_LENGTH, unique=True)
    fly_id = models.CharField(_("Fly id"), max_length=32, db_default="")
    app = models.CharField(_("app"), max_length=NAME_LENGTH)
    image = models.CharField(_("image"), max_length=512)
    backend = models.CharField(_("backend"), max_length=NAME_LENGTH)
    queue = models.CharField(_("queue"), max_length=NAME_LENGTH)
    spec = models.JSONField(_("spec"))
    spec_key = models.CharField(_("spec key"), max_length=16)
    region = models.CharField(_("region"), max_length=16, db_default="")
    launched_for = models.ForeignKey(
        TaskRun, models.SET_NULL, null=True, related_name="+", verbose_name=_("launched for")
    )
    status = models.CharField(_("status"), max_length=8, choices=MachineStatus, db_default=MachineStatus.RESERVED)
    state = models.CharField(_("Fly state"), max_length=16, db_default="")
    boot_id = models.CharField(_("boot id"), max_length=32, db_default="")
    reserved_at = models.DateTimeField(_("reserved"), db_default=Now())
    requested_at = models.DateTimeField(_("requested"), null=True)
    created_at = models.DateTimeField(_("created"), null=True)
    started_at = models.DateTimeField(_("started"), null=True, help_text=_("When Fly was first seen to say so."))
    booted_at = models.DateTimeField(_("checked in"), null=True)
    seen_at = models.DateTimeField(_("seen"), null=True)
    gone_at = models.DateTimeField(_("gone"), null=True)
    deadline_at = models.DateTimeField(_("deadline"))
    runs = models.PositiveIntegerField(_("runs"), db_default=0)
    exit_event = models.JSONField(_("exit event"), null=True)
    request_ids = models.JSONField(_("Fly request ids"), default=list)
    stages = models.JSONField(_("stages"), null=True, help_text=_("Seconds since the process started, by stage."))
    reason = models.TextField(_("reason"), db_default="")

    class Meta:
        verbose_name = _("machine")
        verbose_name_plural = _("machines")
        constraints = (
            models.CheckConstraint(condition=Q(status__in=MachineStatus.values), name="mq_machine_status"),
            models.CheckConstraint(
                condition=Q(~Q(status=MachineStatus.GONE), gone_at__isnull=True)
                | Q(status=MachineStatus.GONE, gone_at__isnull=False),
                name="mq_machine_gone_at",
            ),
            models.UniqueConstraint(fields=["fly_id"], condition=~Q(fly_id=""), name="mq_machine_fly_id"),
        )
        indexes = (
            models.Index(
                fields=["queue", "spec_key", "status"], condition=~Q(status=MachineStatus.GONE), name="mq_machine_live"
            ),
            # How long boots usually take is asked of the newest that checked in.
            models.Index(
                fields=["backend", "queue", "-id"], condition=Q(booted_at__isnull=False), name="mq_machine_booted"
            ),
        )

    def __str__(self) -> str:
        return self.name


class Queue(models.Model):
    """A lane's state, and the lock under which machines are counted and reserved."""

    backend = models.CharField(_("backend"), max_length=NAME_LENGTH)
    name = models.CharField(_("name"), max_length=NAME_LENGTH)
    paused_at = models.DateTimeField(_("paused"), null=True)
    launch_after = models.DateTimeField(_("no launch before"), null=True)
    failures = models.PositiveIntegerField(_("launches failed in a row"), db_default=0)
    reasons = models.JSONField(_("why runs wait"), default=dict, help_text=_("A sentence by spec key."))

    class Meta:
        verbose_name = _("queue")
        verbose_name_plural = _("queues")
        permissions = (("pause_queue", "Can pause and resume queue"),)
        constraints = (models.UniqueConstraint(fields=["backend", "name"], name="mq_queue_name"),)

    def __str__(self) -> str:
        return self.name


class Dispatcher(models.Model):
    """A dispatcher process, and the leader's lease."""

    name = models.CharField(_("name"), max_length=PATH_LENGTH, unique=True)
    started_at = models.DateTimeField(_("started"), db_default=Now())
    seen_at = models.DateTimeField(_("seen"), db_default=Now())
    leads_until = models.DateTimeField(_("leads until"), null=True)

    class Meta:
        verbose_name = _("dispatcher")
        verbose_name_plural = _("dispatchers")

    def __str__(self) -> str:
        return self.name


class Release(models.Model):
    """The current image: one row, ordered by Fly's release version so that rollbacks win."""

    id = models.PositiveSmallIntegerField(primary_key=True, db_default=1)
    image = models.CharField(_("image"), max_length=512)
    version = models.BigIntegerField(_("release version"), db_default=0)
    current_since = models.DateTimeField(_("current since"), db_default=Now())

    class Meta:
        verbose_name = _("release")
        verbose_name_plural = _("releases")
        constraints = (models.CheckConstraint(condition=Q(id=1), name="mq_release_one_row"),)

    def __str__(self) -> str:
        return self.image


class Circuit(models.Model):
    """Launches that failed in a row for one reason, and when the next may be tried. Gone when one succeeds."""

    kind = models.CharField(_("kind"), max_length=8, choices=CircuitKind)
    image = models.CharField(_("image"), max_length=512, db_default="")
    spec_key = models.CharField(_("spec key"), max_length=16, db_default="")
    failures = models.PositiveIntegerField(_("failures in a row"), default=0)
    since = models.DateTimeField(_("since"), db_default=Now())
    failed_at = models.DateTimeField(_("failed last"), db_default=Now())
    opened_at = models.DateTimeField(_("opened"), null=True)
    next_at = models.DateTimeField(_("next launch"), db_default=Now())
    reason = models.TextField(_("reason"), db_default="")

    class Meta:
        verbose_name = _("circuit")
        verbose_name_plural = _("circuits")
        constraints = (
            models.UniqueConstraint(fields=["kind", "image", "spec_key"], name="mq_circuit_once"),
            models.CheckConstraint(condition=Q(kind__in=CircuitKind.values), name="mq_circuit_kind"),
        )

    def __str__(self) -> str:
        return f"{self.get_kind_display()} {self.spec_key or self.image}".strip()


class TaskProfile(models.Model):
    """What runs of a task usually take, learned from those that succeeded."""

    task = models.CharField(_("task"), max_length=PATH_LENGTH, unique=True)
    runs = models.PositiveIntegerField(_("runs"), db_default=0)
    run_seconds = models.FloatField(_("usual seconds"))
    peak_memory_mb = models.PositiveIntegerField(_("peak memory, MB"), null=True)
    memory_mb = models.PositiveIntegerField(
        _("learned memory, MB"), null=True, help_text=_("What runs get since one ran out of memory with less.")
    )
    outgrown_mb = models.PositiveIntegerField(_("memory that was too little, MB"), null=True)
    modest_runs = models.PositiveIntegerField(
        _("modest runs"), db_default=0, help_text=_("Runs in a row that would have fitted in what was too little.")
    )
    updated_at = models.DateTimeField(_("updated"), db_default=Now())

    class Meta:
        verbose_name = _("task profile")
        verbose_name_plural = _("task profiles")
        permissions = (("reset_taskprofile", "Can forget a task's learned memory"),)

    def __str__(self) -> str:
        return self.task


class Schedule(models.Model):
    """A named entry that is due again and again, or once: exactly one of `cron`, `every_seconds` and `at` is set.

    The columns hold what counts. What the code says stands in `declared`; it is the same unless `edited`.
    """

    name = models.CharField(_("name"), max_length=PATH_LENGTH, unique=True)
    task = models.CharField(_("task"), max_length=PATH_LENGTH)
    args = models.JSONField(_("arguments"), default=list, blank=True)
    kwargs = models.JSONField(_("keyword arguments"), default=dict, blank=True)
    cron = models.CharField(_("cron"), max_length=PATH_LENGTH, db_default="", default="", blank=True)
    every_seconds = models.FloatField(_("interval"), null=True, blank=True, help_text=_("Seconds."))
    timezone = models.CharField(_("time zone"), max_length=NAME_LENGTH, db_default="UTC")
    enabled = models.BooleanField(_("enabled"), db_default=True)
    next_at = models.DateTimeField(_("next"), null=True)
    at = models.DateTimeField(_("once at"), null=True, blank=True)
    start_at = models.DateTimeField(_("not before"), null=True, blank=True)
    end_at = models.DateTimeField(_("not after"), null=True, blank=True)
    jitter_seconds = models.FloatField(
        _("jitter"), db_default=0.0, default=0.0, help_text=_("Each run starts up to so many seconds later.")
    )
    queue = models.CharField(_("queue"), max_length=NAME_LENGTH, db_default="", default="", blank=True)
    options = models.JSONField(_("overrides"), null=True, blank=True)
    misfire = models.CharField(
        _("missed ticks"), max_length=6, choices=Misfire, db_default=Misfire.LATEST, default=Misfire.LATEST
    )
    misfire_limit = models.PositiveIntegerField(_("missed ticks at most"), db_default=100, default=100)
    max_running = models.PositiveIntegerField(
        _("unfinished runs at most"),
        db_default=0,
        default=0,
        help_text=_("A tick is left out while so many runs of the schedule have not finished; 0: no limit."),
    )
    paused_at = models.DateTimeField(_("paused"), null=True)
    declared = models.JSONField(_("what the code says"), null=True)
    edited = models.BooleanField(_("edited"), db_default=False, default=False)
    withdrawn_at = models.DateTimeField(_("gone from the code"), null=True)
    revision = models.PositiveIntegerField(_("revision"), db_default=0, default=0)
    last_due_at = models.DateTimeField(_("last tick"), null=True)
    last_lateness = models.FloatField(_("lateness of the last tick"), null=True, help_text=_("Seconds."))
    last_error = models.TextField(_("error"), db_default="", default="")
    failed_at = models.DateTimeField(_("failing since"), null=True)

    class Meta:
        verbose_name = _("schedule")
        verbose_name_plural = _("schedules")
        permissions = (
            ("run_schedule", "Can run schedule now"),
            ("pause_schedule", "Can pause and resume schedule"),
        )
        indexes = (models.Index(fields=["next_at"], condition=Q(next_at__isnull=False), name="mq_schedule_next"),)

    def __str__(self) -> str:
        return self.name


class ScheduleTick(models.Model):
    """One due instant of a schedule. Inserting it is winning the tick, in the transaction that enqueues."""

    schedule = models.ForeignKey(Schedule, models.CASCADE, related_name="ticks", verbose_name=_("schedule"))
    due_at = models.DateTimeField(_("due"))
    run = models.ForeignKey(TaskRun, models.SET_NULL, null=True, related_name="+", verbose_name=_("run"))
    won_at = models.DateTimeField(_("won"), db_default=Now())
    note = models.TextField(_("note"), db_default="", default="")

    class Meta:
        verbose_name = _("tick")
        verbose_name_plural = _("ticks")
        constraints = (models.UniqueConstraint(fields=["schedule", "due_at"], name="mq_tick_once"),)

    def __str__(self) -> str:
        return f"{self.schedule_id} {self.due_at}"


class Pace(models.Model):
    """When the turn for another create, or list, of an app comes. No page shows it, so no words are translated."""

    app = models.CharField(max_length=NAME_LENGTH)
    action = models.CharField(max_length=16)
    free_at = models.FloatField(help_text="Seconds since the epoch, by the database's clock.")

    class Meta:
        constraints = (models.UniqueConstraint(fields=["app", "action"], name="mq_pace_of"),)

    def __str__(self) -> str:
        return f"{self.action} {self.app}"


class Backup(models.Model):
    """One copy of a database, or of the media files, in the storage for backups."""

    database = models.CharField(_("database"), max_length=NAME_LENGTH, db_default="")
    kind = models.CharField(_("kind"), max_length=8, choices=BackupKind, db_default=BackupKind.DATABASE)
    status = models.CharField(_("status"), max_length=9, choices=BackupStatus, db_default=BackupStatus.RUNNING)
    name = models.CharField(_("name in the storage"), max_length=PATH_LENGTH, db_default="")
    size_bytes = models.BigIntegerField(_("size"), null=True, help_text=_("Bytes, as stored."))
    sha256 = models.CharField(_("checksum"), max_length=64, db_default="", help_text=_("SHA-256, as stored."))
    counts = models.JSONField(_("rows by table"), null=True)
    started_at = models.DateTimeField(_("started"), db_default=Now())
    finished_at = models.DateTimeField(_("finished"), null=True)
    seconds = models.FloatField(_("seconds"), null=True)
    compressed = models.BooleanField(_("compressed"), db_default=False)
    encrypted = models.BooleanField(_("encrypted"), db_default=False)
    server_version = models.CharField(_("server version"), max_length=NAME_LENGTH, db_default="")
    error = models.TextField(_("error"), db_default="")
    removed_at = models.DateTimeField(_("removed"), null=True, help_text=_("When the storage was rid of it."))
    run = models.ForeignKey(TaskRun, models.SET_NULL, null=True, related_name="+", verbose_name=_("run"))

    class Meta:
        verbose_name = _("backup")
        verbose_name_plural = _("backups")
        constraints = (
            models.CheckConstraint(condition=Q(kind__in=BackupKind.values), name="mq_backup_kind"),
            models.CheckConstraint(condition=Q(status__in=BackupStatus.values), name="mq_backup_status"),
            models.CheckConstraint(
                condition=Q(status=BackupStatus.RUNNING, finished_at__isnull=True)
                | Q(~Q(status=BackupStatus.RUNNING), finished_at__isnull=False),
                name="mq_backup_finished_at",
            ),
        )
        indexes = (models.Index(fields=["kind", "database", "-id"], name="mq_backup_newest"),)

    def __str__(self) -> str:
        return self.name or f"{self.kind} {self.database}".strip()


class RestoreDrill(models.Model):
    """One try to restore a backup, and whether it proved that the backup can be."""

    backup = models.ForeignKey(Backup, models.CASCADE, related_name="drills", verbose_name=_("backup"))
    status = models.CharField(_("status"), max_length=10, choices=DrillStatus, db_default=DrillStatus.RUNNING)
    method = models.CharField(_("restored into"), max_length=NAME_LENGTH, db_default="")
    reason = models.TextField(_("reason"), db_default="")
    differences = models.JSONField(
        _("differences"), null=True, help_text=_("By table: rows in the backup's record, rows restored.")
    )
    started_at = models.DateTimeField(_("started"), db_default=Now())
    finished_at = models.DateTimeField(_("finished"), null=True)
    seconds = models.FloatField(_("seconds"), null=True)
    run = models.ForeignKey(TaskRun, models.SET_NULL, null=True, related_name="+", verbose_name=_("run"))

    class Meta:
        verbose_name = _("restore drill")
        verbose_name_plural = _("restore drills")
        constraints = (
            models.CheckConstraint(condition=Q(status__in=DrillStatus.values), name="mq_drill_status"),
            models.CheckConstraint(
                condition=Q(status=DrillStatus.RUNNING, finished_at__isnull=True)
                | Q(~Q(status=DrillStatus.RUNNING), finished_at__isnull=False),
                name="mq_drill_finished_at",
            ),
        )

    def __str__(self) -> str:
        return f"{self.backup_id} {self.get_status_display()}"


class ApiAnswer(models.Model):
    """When the Machines API last answered a dispatcher, and what went wrong since. No page shows it."""

    app = models.CharField(max_length=NAME_LENGTH, unique=True)
    answered_at = models.DateTimeField(null=True)
    failed_at = models.DateTimeField(null=True)
    error = models.TextField(db_default="")

    def __str__(self) -> str:
        return self.app


class ServerlessMachine(models.Model):
    """A machine that answers requests for chosen views, from the wish of a web process until it is gone."""

    app = models.CharField(_("app"), max_length=NAME_LENGTH)
    size_key = models.CharField(_("size key"), max_length=16)
    size = models.JSONField(_("size"))
    image = models.CharField(
        _("image"), max_length=512, db_default="", help_text=_("Empty until a dispatcher takes the wish up.")
    )
    name = models.CharField(_("name"), max_length=NAME_LENGTH, db_default="")
    fly_id = models.CharField(_("Fly id"), max_length=32, db_default="")
    region = models.CharField(_("region"), max_length=16, db_default="")
    status = models.CharField(_("status"), max_length=8, choices=ServerlessStatus, db_default=ServerlessStatus.WISHED)
    state = models.CharField(_("Fly state"), max_length=16, db_default="")
    failures = models.PositiveIntegerField(_("failures in a row"), db_default=0)
    error = models.TextField(_("last error"), db_default="")
    wished_at = models.DateTimeField(_("wished for"), db_default=Now())
    asked_at = models.DateTimeField(_("asked for last"), db_default=Now())
    next_at = models.DateTimeField(_("next attempt"), db_default=Now())
    requested_at = models.DateTimeField(_("requested"), null=True)
    ready_at = models.DateTimeField(_("ready"), null=True)
    booted_at = models.DateTimeField(_("last start"), null=True, help_text=_("When its server last began to answer."))
    retired_at = models.DateTimeField(_("retired"), null=True)
    gone_at = models.DateTimeField(_("gone"), null=True)

    class Meta:
        verbose_name = _("serverless machine")
        verbose_name_plural = _("serverless machines")
        constraints = (
            models.CheckConstraint(condition=Q(status__in=ServerlessStatus.values), name="mq_serverless_status"),
            models.CheckConstraint(
                condition=~Q(status=ServerlessStatus.READY) | ~Q(fly_id=""), name="mq_serverless_ready_known"
            ),
            # However many requests wish for it, there is one of a size and an image.
            models.UniqueConstraint(
                fields=["app", "size_key", "image"],
                condition=Q(status__in=(ServerlessStatus.WISHED, ServerlessStatus.CREATING, ServerlessStatus.READY)),
                name="mq_serverless_once",
            ),
        )

    def __str__(self) -> str:
        return self.name or self.size_key
