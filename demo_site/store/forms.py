from django import forms

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


class QuantityForm(forms.Form):
    quantity = forms.IntegerField(min_value=0, max_value=20)
