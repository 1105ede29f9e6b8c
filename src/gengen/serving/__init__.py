"""HTTP: requests in, generators called, streams out.

Read protocol.py (what is asked), answers.py (what is said), queue.py (whose turn it is), worker.py (the thread that
draws texts), text.py (their endpoints), calls.py (the thread of images and of scores), images.py and families.py
(their endpoints), guard.py (who may come in), app.py (how it all hangs together).
"""
