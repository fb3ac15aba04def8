"""Run directories to one HTML page that needs nothing else; never imports torch.

The page says first what was trained, how it fared and what speaks against the figures, then what
it cost, then shows curves and pictures, then everything needed to do it again. No accuracy
stands on it without the protocol that measured it.
"""

from gratis.report.page import write_report
from gratis.report.values import duration, environment, passes, percent, radius

__all__ = ["duration", "environment", "passes", "percent", "radius", "write_report"]
