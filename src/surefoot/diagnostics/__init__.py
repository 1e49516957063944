"""Is the result better, and was it hacked? Numbers with intervals, sentences, and one page to look at.

calibration   accuracy, win rate and calibration of preferences, each with an interval
text          diversity, duplicates, repetition and length of answers
metrics       every recorded number: formula, denominator, unit, healthy range, what to do
verdict       the figures of an evaluation, said in plain sentences
report        report.html: one self-contained file that opens offline
  run_view, charts, samples, summaries, wording: what a report reads, draws, picks, counts and how it writes it
"""
