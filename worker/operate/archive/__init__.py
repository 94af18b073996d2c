"""The log of attempts as files: JSON Lines for export and import, and xAPI statements for
export.
"""
