"""Adapters that put the engine behind the interfaces of other frameworks. They arrive one by one; see CHANGELOG.md."""
