"""Taking deliveries from the broker, and settling them.

`consumer.py` stays subscribed, `in_hand.py` keeps the deliveries that have arrived, `lanes.py`
takes groups of them through the transaction, `intake.py` reads them, and `settle.py` settles them.
"""
