"""Cell → Analysis: proves, refutes or leaves undecided every claim on ranges and spectra."""

from rnnc.bound.analysis import Analysis, Range, Verdict, analysis_text, spectrum_text
from rnnc.bound.claims import bound
from rnnc.bound.interval import Interval
from rnnc.bound.spectrum import Spectrum
from rnnc.bound.witness import Witness

__all__ = ["Analysis", "Interval", "Range", "Spectrum", "Verdict", "Witness", "analysis_text", "bound", "spectrum_text"]
