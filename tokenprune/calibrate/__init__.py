"""What is fitted to a model on pictures and questions of one's own: trends of attention, schedules of drops."""

from .schedule import change_points, detect_schedule
from .trend import fit_cubic, fit_exponential, fit_trend

__all__ = ["change_points", "detect_schedule", "fit_cubic", "fit_exponential", "fit_trend"]
