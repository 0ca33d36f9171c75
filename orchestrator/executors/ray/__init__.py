"""Run jobs on Ray: tuner.py (Tune) schedules, slot.py (Train) runs, session.py connects."""
