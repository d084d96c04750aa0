"""`sparcom selftest`: does capture do on this machine what it promises, and what does it cost?

    plan       which steps, in which order, with how many seconds each
    runner     runs them within the time that there is, and keeps the report up to date
    process    each step in a process of its own, killed at its limit with all that it started
    steps      what a step does: kernels, tokens, masks, speed; a module each
    results    what a step says, and `report`: how that looks on a terminal and in JSON

Models are made on the spot with random weights; nothing is fetched, nothing is installed.
"""
