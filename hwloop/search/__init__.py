"""The search: which action each group gets. It knows numbers only - no network and no device.

``problem`` says what is known beforehand, ``methods`` lists who can search, ``agent`` is the DQN
and ``baselines`` are its rivals behind the same interface.
"""
