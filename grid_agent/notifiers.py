"""Where incidents are shown, beside one another. Called by `compose`."""

from grid_agent.core.incident_model import Incident
from grid_agent.edges.head_news import HeadNews
from grid_agent.edges.outbox import Outbox
from grid_agent.ports import Notifier


class Continued:
    """Slack, where an incident may go on in the message that the keeper has begun."""

    def __init__(self, outbox: Outbox, news: HeadNews) -> None:
        self._outbox = outbox
        self._news = news

    def put(self, incident: Incident) -> None:
        """Queue it."""
        begun = self._news.message(incident)
        if begun is not None:
            self._outbox.adopt(incident.id, *begun)
        self._outbox.put(incident)


class Everywhere:
    """Shows each incident in every place that there is."""

    def __init__(self, *places: Notifier | None) -> None:
        self._places = [place for place in places if place is not None]

    def put(self, incident: Incident) -> None:
        """Queue it everywhere."""
        for place in self._places:
            place.put(incident)
