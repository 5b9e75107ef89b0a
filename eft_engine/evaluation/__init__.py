"""Measuring a trio: questions with their expected answers, scorers, intervals, a report, and the search for a weight."""
