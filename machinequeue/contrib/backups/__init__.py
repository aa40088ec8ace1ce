"""A nightly backup on a machine of its own, and a restore drill on a second one that proves it.

Named in INSTALLED_APPS as "machinequeue.contrib.backups"; without that, nothing is backed up.
"""
