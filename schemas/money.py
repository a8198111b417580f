"""Amounts of money as integers: minor units of an ISO 4217 currency, never a float."""

import re
from decimal import Decimal

DECIMALS = {
    code: decimals
    for decimals, codes in {
        0: "BIF BYR CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
        2: "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BOV BRL BSD BTN BWP "
        "BYN BZD CAD CDF CHE CHF CHW CNY COP COU CRC CUC CUP CVE CZK DKK DOP DZD EEK EGP ERN ETB "
        "EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HRK HTG HUF IDR ILS INR IRR JMD KES KGS "
        "KHR KPW KYD KZT LAK LBP LKR LRD LSL LTL LVL MAD MDL MGA MKD MMK MNT MOP MRO MRU MUR MVR "
        "MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR "
        "SBD SCR SDG SEK SGD SHP SLE SLL SOS SRD SSP STD STN SVC SYP SZL THB TJS TMT TOP TRY TTD "
        "TWD TZS UAH USD USN UYU UZS VED VEF VES WST XCD XCG YER ZAR ZMK ZMW ZWG ZWL",
        3: "BHD IQD JOD KWD LYD OMR TND",
        4: "CLF UYW",
    }.items()
    for code in codes.split()
}
"""Decimals of each currency of ISO 4217, with those withdrawn since 2009, because history is replayed."""

LARGEST = 2**53 - 1
"""The largest sum in minor units: what every JSON reader holds exactly."""

_DIGITS = r"([0-9]{1,16})(?:\.([0-9]{1,32}))?$"
PLAIN_DECIMAL = "^" + _DIGITS
SIGNED_DECIMAL = "^-?" + _DIGITS


def minor_units(amount: str | int | float, currency: str, *, is_signed: bool = False) -> int:
    """The amount in minor units, exactly: `("19.9", "EUR")` is 1990, `(5, "JPY")` is 5.

    Raises ValueError with a sentence that names the JSON field at fault, never its content.
    """
    decimals = DECIMALS.get(currency)
    if decimals is None:
        raise ValueError("`$.currency` must be an ISO 4217 code in capitals, like EUR, and this one is not")
    text = amount if isinstance(amount, str) else format(Decimal(repr(amount)), "f")
    written = re.fullmatch(SIGNED_DECIMAL if is_signed else PLAIN_DECIMAL, text)
    if not written:
        what = "a plain decimal, like -30.50" if is_signed else "a plain decimal of 0 or more, like 1990.50"
        raise ValueError(f"the amount must be {what}, and this one is not")
    whole, fraction = written[1], (written[2] or "").rstrip("0")
    if len(fraction) > decimals:
        raise ValueError(f"the amount has {len(fraction)} decimals, its currency only {decimals}: round it")
    minor = int(whole + fraction.ljust(decimals, "0"))
    if minor > LARGEST:
        raise ValueError(f"the amount must be at most {LARGEST} minor units of its currency, and is more")
    return -minor if text.startswith("-") else minor
