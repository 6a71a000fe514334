"""A stateless service: a module of functions, each callable by name."""

import re
import statistics


def word_count(text: str) -> dict:
    words = re.findall(r"[\w']+", text.lower())
    return {"words": len(words), "distinct": len(set(words))}


def slugify(text: str, separator: str = "-") -> str:
    return separator.join(re.findall(r"[a-z0-9]+", text.lower()))


def summary(values: list) -> dict:
    return {"mean": statistics.fmean(values), "median": statistics.median(values), "count": len(values)}
