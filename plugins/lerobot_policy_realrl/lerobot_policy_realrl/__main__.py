"""`python -m lerobot_policy_realrl FOLDER`: writes config.json and the pipelines beside an export, so that LeRobot can load it."""

from __future__ import annotations

import sys
from pathlib import Path


def prepare(folder: Path) -> None:
    """Write what LeRobot looks for into the folder of an export. Raises ValueError for one that it cannot run."""
    from lerobot_policy_realrl.configuration_realrl import configuration
    from lerobot_policy_realrl.processor_realrl import make_realrl_pre_post_processors
    config = configuration(folder)
    config._save_pretrained(folder)
    for pipeline in make_realrl_pre_post_processors(config):
        pipeline.save_pretrained(folder)


def main() -> int:
    """Prepare the folder that the command line names."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        prepare(Path(sys.argv[1]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"LeRobot runs it with --policy.path={sys.argv[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
