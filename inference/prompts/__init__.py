"""A1111's prompt language: pure text, without a model. Each module is one part of it.

Their order in A1111 1.10.1 (`modules/processing.py`): styles, extra networks, composition (AND),
editing ([from:to:when]), attention ((a:1.2)).
"""
