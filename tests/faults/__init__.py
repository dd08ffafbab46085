"""The fault campaign: jobs of real ranks, one of which does something wrong.

``scripts/check-faults`` runs ``__main__.py``. ``kinds.py`` registers what a rank does wrong, from
``processes.py``, ``arguments.py``, ``messages.py`` and ``planted.py``; ``plan.py`` draws jobs;
``launch.py`` starts one and finds its processes; ``verdict.py`` says how it ended. ``rank.py`` is
the program of each rank, which trains as ``steps.py`` says, by a front end of ``fronts.py``.
"""
