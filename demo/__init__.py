"""The demonstration: a real live mount on this machine, with the proof of it, and nothing left at the end."""
