"""One self-contained HTML page about a run, or about several side by side.

`write_report` writes the page. `facts` takes the numbers out of a run's record, `verdict` and
`comparison` say in words what they mean, `matrices` and `tables` lay out the rest, `page` puts
everything into the templates. Whatever a record holds is escaped: runs come from strangers.
"""

from gafscope.report.page import write_report

__all__ = ["write_report"]
