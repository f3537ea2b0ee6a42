"""The rooms of the loopback Hub; the server itself is tests/loopback_hub.py."""
