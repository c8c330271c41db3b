"""From files to numbers with intervals, to one page. No torch (except, on call, `shift.score`)."""
