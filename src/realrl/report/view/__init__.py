"""`realrl view`: what a policy sees, as pages, films and recordings for Rerun.

A page is one file that needs no network: cameras, clouds that can be turned, and the traces of what was observed, proposed, sent and
rewarded, all on one time line.
"""

from realrl.report.view.clips import Clip, EpisodeSet
from realrl.report.view.page import view, write_page, write_set

__all__ = ["Clip", "EpisodeSet", "view", "write_page", "write_set"]
