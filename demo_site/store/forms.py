from django import forms
from django.utils.translation import gettext_lazy as _

from demo_site.store.models import Purchase


class CheckoutForm(forms.ModelForm):
    class Meta:
        model = Purchase
        fields = ("customer_name", "customer_email", "customer_city")
        widgets = {
            "customer_name": forms.TextInput({"autocomplete": "name"}),
            "customer_email": forms.EmailInput({"autocomplete": "email"}),
            "customer_city": forms.TextInput({"autocomplete": "address-level2"}),
        }


class SnippetForm(forms.Form):
    code = forms.CharField(
        max_length=10_000,
        strip=False,
        label=_("Python"),
        widget=forms.Textarea({"rows": 14, "spellcheck": "false", "autocapitalize": "off", "class": "code"}),
    )


class QuantityForm(forms.Form):
    quantity = forms.IntegerField(min_value=0, max_value=20)
