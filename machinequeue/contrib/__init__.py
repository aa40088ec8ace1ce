"""What a project may add: tasks that machinequeue runs on itself, and those it makes of what a project has already."""
