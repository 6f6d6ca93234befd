"""The parts of `demos/app.py`."""
