"""`{{ amount|euros }}`."""

from django import template

from demo_site.store import money

register = template.Library()
register.filter("euros", money.euros)
