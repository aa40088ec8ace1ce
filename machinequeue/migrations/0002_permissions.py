from django.db import migrations


class Migration(migrations.Migration):

    dependencies = [
        ('machinequeue', '0001_initial'),
    ]

    operations = [
        migrations.AlterModelOptions(
            name='queue',
            options={'permissions': (('pause_queue', 'Can pause and resume queue'),), 'verbose_name': 'queue', 'verbose_name_plural': 'queues'},
        ),
        migrations.AlterModelOptions(
            name='taskrun',
            options={'permissions': (('retry_taskrun', 'Can retry run'), ('cancel_taskrun', 'Can cancel run')), 'verbose_name': 'run', 'verbose_name_plural': 'runs'},
        ),
    ]
