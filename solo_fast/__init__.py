"""Solo: a user-level operating system for LLM agents, in one file.

User code imports one name from here: ``from solo_fast import Service``.
"""

from solo_fast.service import Service

__version__ = "0.1.0"

__all__ = ["Service", "__version__"]
