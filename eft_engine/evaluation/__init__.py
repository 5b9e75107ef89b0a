"""Measuring a trio: questions with their expected answers, scorers, intervals, and a report."""
