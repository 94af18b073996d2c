"""The operations: what an operator does to the data and the dead letters, one file or folder for
each.

An operation runs one transaction for each principal, under the principal's lock. Running it again
changes nothing more, and `verify` finds no difference afterwards. Its queries are in
`worker/store/operate` under the same name, and its command is in `worker/cli`.
"""
