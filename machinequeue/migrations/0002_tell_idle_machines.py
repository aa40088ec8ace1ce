"""On PostgreSQL: tell runners that wait for work, in the transaction that enqueues.

Whoever inserts, a web process or a task, the machines that wait hear of it at the commit. Only while one waits: a
commit that carries a NOTIFY takes a lock of the whole cluster. A trigger, because its plan is kept: the same question
asked with every INSERT would cost half as much again as the INSERT itself.
"""

from django.db import migrations

CREATE = """
CREATE FUNCTION machinequeue_tell_idle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM machinequeue_machine WHERE status = 'idle') THEN
        PERFORM pg_notify('machinequeue', queue) FROM (SELECT DISTINCT queue FROM enqueued) AS queues;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER machinequeue_tell_idle AFTER INSERT ON machinequeue_taskrun
    REFERENCING NEW TABLE AS enqueued FOR EACH STATEMENT EXECUTE FUNCTION machinequeue_tell_idle();
"""

DROP = """
DROP TRIGGER machinequeue_tell_idle ON machinequeue_taskrun;
DROP FUNCTION machinequeue_tell_idle();
"""


def on_postgresql(statements):
    def run(apps, schema_editor):
        if schema_editor.connection.vendor == "postgresql":
            schema_editor.execute(statements)

    return run


class Migration(migrations.Migration):
    dependencies = [("machinequeue", "0001_initial")]
    operations = [migrations.RunPython(on_postgresql(CREATE), on_postgresql(DROP))]
