"""A user's report: what the user knows, forgets and should review.

`gather.py` reads the answers and the names, `retold.py` folds the answers given until the report's
moment, `picture.py` computes the figures, and `page.py` and `charts.py` show them. All but the
first are pure. Nothing here writes to the database.
"""
