"""The sections of a recipe: plain dataclasses whose defaults are this package's own choices."""

from gratis.sections.course import Budget, Engine, Optimizer, Phase, Schedule
from gratis.sections.judgement import Check, Evaluation, Guard
from gratis.sections.subject import About, Data, Model, Task, Unlabelled

__all__ = [
    "About",
    "Budget",
    "Check",
    "Data",
    "Engine",
    "Evaluation",
    "Guard",
    "Model",
    "Optimizer",
    "Phase",
    "Schedule",
    "Task",
    "Unlabelled",
]
