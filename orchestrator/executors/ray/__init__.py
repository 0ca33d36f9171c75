"""Run jobs on Ray: Tune schedules them (tuner.py), Train runs each (slot.py)."""
