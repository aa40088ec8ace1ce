"""Answer "is it working?" for a load balancer and for an operator.

Each question is a function that reads rows, or tries a service, and gives an `Answer`: ok, warning or failure, a
sentence, and what to do. `asking` asks many of them in bounded time.
"""

from machinequeue.health.answers import Answer, Sentence, Status, failure, ok, warning

__all__ = ["Answer", "Sentence", "Status", "failure", "ok", "warning"]
