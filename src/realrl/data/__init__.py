"""Recorded episodes: `store` keeps them on disk in LeRobot's layout, `check` reads and examines such a folder."""
