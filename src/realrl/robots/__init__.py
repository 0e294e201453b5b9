"""The boundary between a policy and a robot."""
