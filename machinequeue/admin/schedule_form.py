"""The form of a schedule: what an operator sets is checked as a declaration in the code is."""

from dataclasses import asdict
from typing import Any
from zoneinfo import available_timezones

from django import forms
from django.conf import settings
from django.utils.translation import gettext_lazy

from machinequeue import conf, schedules
from machinequeue.models import Schedule
from machinequeue.records.schedules import COLUMNS, Entry


class Json(forms.JSONField):
    """JSON, an empty box where there is none."""

    def prepare_value(self, value: Any) -> Any:
        return "" if value is None else super().prepare_value(value)


class ScheduleForm(forms.ModelForm):
    """A task of this release, when it is due, and with what."""

    task = forms.ChoiceField(label=gettext_lazy("Task"))
    timezone = forms.ChoiceField(label=gettext_lazy("Time zone"))
    queue = forms.ChoiceField(label=gettext_lazy("Queue"), required=False)

    class Meta:
        model = Schedule
        fields = ("name", *COLUMNS)
        field_classes = {"args": Json, "kwargs": Json, "options": Json}
        widgets = dict.fromkeys(("args", "kwargs", "options"), forms.Textarea(attrs={"rows": 3, "cols": 60}))
        help_texts = {
            "cron": gettext_lazy("Minute, hour, day, month, day of week; or six fields, the second first; or @daily."),
            "every_seconds": gettext_lazy("Seconds. Instead of a cron."),
            "at": gettext_lazy("One single moment, instead of a cron or an interval."),
            "args": gettext_lazy("A JSON list."),
            "kwargs": gettext_lazy("A JSON object."),
            "options": gettext_lazy('A JSON object such as {"memory_mb": 1024, "timeout": 60, "priority": 5}.'),
            "misfire": gettext_lazy("What becomes of ticks for which no dispatcher was there."),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk is None:
            plain = asdict(Entry(task="", timezone=settings.TIME_ZONE))
            self.initial = {**plain, "options": None, **{k: v for k, v in self.initial.items() if k in self.data}}
        self._choose("task", schedules.choices())
        self._choose("timezone", sorted(available_timezones()))
        self._choose("queue", sorted(_queues()), empty=gettext_lazy("That of the task"))

    def _choose(self, name: str, values: list[str], empty: Any = None) -> None:
        if name not in self.fields:  # who may only look gets no fields
            return
        current = self.initial.get(name) or ""
        known = values if not current or current in values else [current, *values]
        field: Any = self.fields[name]
        field.choices = [*([("", empty)] if empty else []), *((value, value) for value in known)]

    def clean(self) -> dict[str, Any]:
        """Each problem at the field that it is about."""
        values = super().clean() or {}
        values["args"] = [] if values.get("args") is None else values["args"]
        values["kwargs"] = {} if values.get("kwargs") is None else values["kwargs"]
        values["options"] = values.get("options") or None
        for name, kind in (("args", list), ("kwargs", dict), ("options", dict)):
            if values[name] is not None and not isinstance(values[name], kind):
                self.add_error(name, str(self.fields[name].help_text))
        if not self.errors:
            for name, sentence in schedules.problems(self.entry()).items():
                self.add_error(name, sentence)
        return values

    def entry(self) -> Entry:
        """What the form says."""
        return Entry(**{name: self.cleaned_data[name] for name in COLUMNS})


def _queues() -> set[str]:
    aliases = [alias for alias, params in getattr(settings, "TASKS", {}).items() if conf.is_ours(params)]
    return {name for alias in aliases for name in conf.policies(alias)}
