"""How a batch becomes history: resolve, score, finalize, in one transaction.

`transaction.py` reads as the table of contents; `resolve.py`, `finalize.py` and `messages.py` are
pure and import neither SQLAlchemy nor a driver.
"""
