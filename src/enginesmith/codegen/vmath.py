"""Vectorised elementary functions in plain C: no libm, no intrinsics, any LANES.

`v_NAME` works on vectors of float32, `d_NAME` on one double (used for float64 expressions and
inside the float32 functions that need more range: pow, sin and cos). All are correct at +-0, +-inf,
NaN and on overflow and underflow. Greatest errors over all tested inputs
(tests/codegen/test_vmath.py):

| function | ulp | method, source of the coefficients |
|---|---|---|
| v_exp | 1.5 | 2^n * P(r), Cephes `expf` |
| v_log | 1.5 | n ln 2 + P(m - 1), Cephes `logf` |
| v_tanh | 5 | rational in x^2, Eigen `ptanh_float` |
| v_erf | 6 | rational in x^2, Eigen `perf_float` |
| v_sigmoid | 3 | 1 / (1 + exp(-x)), no cancellation at either end |
| v_sin, v_cos, v_pow | 1 | rounded from the double functions |
| d_* | 4 (of float64) | Taylor series after reduction; tanh and erf: Cephes |

sin and cos reduce with three parts of pi/2: full accuracy up to |x| = 2^30.
Cephes: S. L. Moshier, netlib.org/cephes. Eigen: Eigen/src/Core/MathFunctionsImpl.h.
"""

from __future__ import annotations

from collections.abc import Iterable


def horner(variable: str, *coefficients: str) -> str:
    """The polynomial with these coefficients, highest power first, as nested multiply-adds."""
    text = coefficients[0]
    for c in coefficients[1:]:
        text = f"({text} * {variable} + {c})"
    return text


def _inverse_factorials(start: int, stop: int, step: int) -> tuple[str, ...]:
    """1/k! for k = start, start + step, ... down to stop, as C doubles."""
    from math import factorial

    return tuple(repr(1 / factorial(k)) for k in range(start, stop - 1, step))


_V_EXP = f"""
INLINE vf v_exp(vf x) {{
  x = v_lower(splat(89.f), v_raise(splat(-104.f), x));
  vf t = x * 1.44269504088896341f + 12582912.f;  /* the low bits of t are round(x / ln 2) */
  vf n = t - 12582912.f;
  vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vf p = {
    horner(
        "r",
        "1.9875691500e-4f",
        "1.3981999507e-3f",
        "8.3334519073e-3f",
        "4.1665795894e-2f",
        "1.6666665459e-1f",
        "5.0000001201e-1f",
    )
};
  p = p * (r * r) + r + 1.f;
  vi i = (vi)t - 0x4B400000, half = i >> 1;  /* 2^i in two steps: i may pass -126 and 127 */
  return p * (vf)((half + 127) << 23) * (vf)((i - half + 127) << 23);
}}
"""

_V_LOG = f"""
INLINE vf v_log(vf x) {{
  vi tiny = x < 1.17549435e-38f;
  vf y = vblend(tiny, x * 8388608.f, x);
  vi bits = (vi)y, e = ((bits - 0x3F3504F3) >> 23);
  vf m = (vf)(bits - (e << 23)) - 1.f;
  vf n = __builtin_convertvector(e - (tiny & 23), vf);
  vf p = {
    horner(
        "m",
        "7.0376836292e-2f",
        "-1.1514610310e-1f",
        "1.1676998740e-1f",
        "-1.2420140846e-1f",
        "1.4249322787e-1f",
        "-1.6668057665e-1f",
        "2.0000714765e-1f",
        "-2.4999993993e-1f",
        "3.3333331174e-1f",
    )
};
  vf z = m * m;
  vf r = (m * z * p - n * 2.12194440e-4f - 0.5f * z) + m + n * 0.693359375f;
  r = vblend((vi)(x == __builtin_inff()), x, r);
  r = vblend((vi)(x == 0.f), splat(-__builtin_inff()), r);
  return vblend(~(vi)(x >= 0.f), splat(__builtin_nanf("")), r);
}}
"""

_V_TANH = f"""
INLINE vf v_tanh(vf x) {{
  vf y = v_lower(splat(7.90531110763549805f), v_raise(splat(-7.90531110763549805f), x)), z = y * y;
  vf p = {
    horner(
        "z",
        "-2.76076847742355e-16f",
        "2.00018790482477e-13f",
        "-8.60467152213735e-11f",
        "5.12229709037114e-08f",
        "1.48572235717979e-05f",
        "6.37261928875436e-04f",
        "4.89352455891786e-03f",
    )
};
  vf q = {
    horner(
        "z",
        "1.19825839466702e-06f",
        "1.18534705686654e-04f",
        "2.26843463243900e-03f",
        "4.89352518554385e-03f",
    )
};
  vf r = vblend((vi)(z < 1.6e-7f), x, y * p / q);
  r = vblend((vi)(x >= 9.1f), splat(1.f), r);
  return vblend((vi)(x <= -9.1f), splat(-1.f), r);
}}
"""

_V_ERF = f"""
INLINE vf v_erf(vf x) {{
  x = v_lower(splat(4.f), v_raise(splat(-4.f), x));
  vf z = x * x;
  vf p = {
    horner(
        "z",
        "-2.72614225801306e-10f",
        "2.77068142495902e-08f",
        "-2.10102402082508e-06f",
        "-5.69250639462346e-05f",
        "-7.34990630326855e-04f",
        "-2.95459980854025e-03f",
        "-1.60960333262415e-02f",
    )
};
  vf q = {
    horner(
        "z",
        "-1.45660718464996e-05f",
        "-2.13374055278905e-04f",
        "-1.68282697438203e-03f",
        "-7.37332916720468e-03f",
        "-1.42647390514189e-02f",
    )
};
  return x * p / q;
}}
"""

_V_SIGMOID = "\nINLINE vf v_sigmoid(vf x) { return 1.f / (1.f + v_exp(-x)); }\n"

_V_MOD = """
INLINE vf v_fmod(vf x, vf y) {
  vf r = x - __builtin_elementwise_trunc(x / y) * y;
  vi over = (vi)((r != 0.f) & ((r < 0.f) != (x < 0.f)));  /* the rounded quotient was one too far */
  vi sign = ((vi)x ^ (vi)y) >> 31;
  r = vblend(over, r + vblend(sign, -y, y), r);
  return vblend((vi)((__builtin_elementwise_abs(y) == __builtin_inff()) &
                     (__builtin_elementwise_abs(x) < __builtin_inff())), x, r);
}
INLINE vf v_mod(vf x, vf y) {
  vf r = v_fmod(x, y);
  return vblend((vi)((r != 0.f) & ((r < 0.f) != (y < 0.f))), r + y, r);
}
"""

_D_EXP = f"""
INLINE double d_exp(double x) {{
  x = x < -746. ? -746. : x > 710. ? 710. : x;
  double n = __builtin_roundeven(x * 1.4426950408889634074);
  double r = x - n * 6.93145751953125e-1 - n * 1.42860682030941723212e-6;
  double p = {horner("r", *_inverse_factorials(13, 0, -1))};
  int64_t i = (int64_t)n, half = i >> 1;
  union {{ int64_t i; double d; }} a = {{(half + 1023) << 52}}, b = {{(i - half + 1023) << 52}};
  return p * a.d * b.d;
}}
"""

_D_LOG = f"""
INLINE double d_log(double x) {{
  int tiny = x < 2.2250738585072014e-308;
  union {{ double d; int64_t i; }} u = {{tiny ? x * 4503599627370496. : x}};
  int64_t e = (u.i - 0x3FE6A09E667F3BCD) >> 52;
  u.i -= e << 52;
  double m = u.d - 1, s = m / (m + 2), z = s * s, n = (double)(e - (tiny ? 52 : 0));
  double p = {horner("z", *(repr(2 / k) for k in range(23, 1, -2)))};
  double h = 0.5 * m * m;
  double r = n * 6.93147180369123816490e-1
      + (m - (h - (s * (h + z * p) + n * 1.90821492927058770002e-10)));
  r = x == __builtin_inf() ? x : r;
  r = x == 0 ? -__builtin_inf() : r;
  return x >= 0 ? r : __builtin_nan("");
}}
"""

_D_SINCOS = f"""
INLINE double d_turn(double x, int64_t shift) {{
  x = __builtin_fabs(x) < 1e15 ? x : x - x;  /* 0 where no digit of the angle is left, else NaN */
  double n = __builtin_roundeven(x * 6.36619772367581382433e-1);
  double r = __builtin_fma(n, -1.57079632679489655800e0, x);
  r = __builtin_fma(n, -6.12323399573676603587e-17, r);
  double z = r * r;
  double s = r - r * z * {horner("(-z)", *_inverse_factorials(17, 3, -2))};
  double c = 1 - z * {horner("(-z)", *_inverse_factorials(18, 2, -2))};
  int64_t q = (int64_t)n + shift;
  double y = q & 1 ? c : s;
  return q & 2 ? -y : y;
}}
INLINE double d_sin(double x) {{ return d_turn(x, 0); }}
INLINE double d_cos(double x) {{ return d_turn(x, 1); }}
"""

_D_TANH = f"""
INLINE double d_tanh(double x) {{
  double a = __builtin_fabs(x), z = x * x;
  double p = {
    horner(
        "z", "-9.64399179425052238628e-1", "-9.92877231001918586564e1", "-1.61468768441708447952e3"
    )
};
  double q = {
    horner(
        "z",
        "1.",
        "1.12811678491632931402e2",
        "2.23548839060100448583e3",
        "4.84406305325125486048e3",
    )
};
  return a < 0.625 ? x + x * (z * p / q) : __builtin_copysign(1 - 2 / (d_exp(2 * a) + 1), x);
}}
"""

_D_ERF = f"""
INLINE double d_erf(double x) {{
  double a = __builtin_fabs(x), z = x * x;
  double t = {
    horner(
        "z",
        "9.60497373987051638749e0",
        "9.00260197203842689217e1",
        "2.23200534594684319226e3",
        "7.00332514112805075473e3",
        "5.55923013010394962768e4",
    )
};
  double u = {
    horner(
        "z",
        "1.",
        "3.35617141647503099647e1",
        "5.21357949780152679795e2",
        "4.59432382970980127987e3",
        "2.26290000613890934246e4",
        "4.92673942608635921086e4",
    )
};
  double p = {
    horner(
        "a",
        "2.46196981473530512524e-10",
        "5.64189564831068821977e-1",
        "7.46321056442269912687e0",
        "4.86371970985681366614e1",
        "1.96520832956077098242e2",
        "5.26445194995477358631e2",
        "9.34528527171957607540e2",
        "1.02755188689515710272e3",
        "5.57535335369399327526e2",
    )
};
  double q = {
    horner(
        "a",
        "1.",
        "1.32281951154744992508e1",
        "8.67072140885989742329e1",
        "3.54937778887819891062e2",
        "9.75708501743205489753e2",
        "1.82390916687909736289e3",
        "2.24633760818710981792e3",
        "1.65666309194161350182e3",
        "5.57535340817727675546e2",
    )
};
  double tail = a < 8 ? 1 - d_exp(-z) * p / q : a == a ? 1. : a;
  return a < 1 ? x * t / u : __builtin_copysign(tail, x);
}}
"""

_D_SIGMOID = "\nINLINE double d_sigmoid(double x) { return 1 / (1 + d_exp(-x)); }\n"

_D_POW = """
INLINE double d_pow(double x, double y) {
  double a = __builtin_fabs(x), half = y * 0.5;
  int whole = __builtin_floor(y) == y, odd = whole && __builtin_floor(half) != half;
  double product = y * d_log(a);
  double r = a == 1 ? 1. : d_exp(product);
  r = x < 0 && !whole && a < __builtin_inf() ? __builtin_nan("") : r;
  r = odd ? __builtin_copysign(r, x) : r;
  return y == 0 || x == 1 ? 1. : x != x ? x : r;
}
"""


def _by_lane(name: str) -> str:
    return (
        f"\nINLINE vf v_{name}(vf x) {{ vf y; UNROLL for (int i = 0; i < LANES; ++i) "
        f"y[i] = (float)d_{name}(x[i]); return y; }}\n"
    )


_CLAMPS = """
/* min(c, x) and max(c, x) in one instruction each; a NaN in x stays. */
INLINE vf v_lower(vf c, vf x) { return vblend((vi)(c < x), c, x); }
INLINE vf v_raise(vf c, vf x) { return vblend((vi)(c > x), c, x); }
"""

_MINMAX = """
/* Greater and smaller; NaN if either is. */
INLINE vf v_max(vf a, vf b) { return vblend((vi)(a != a), a, v_raise(a, b)); }
INLINE vf v_min(vf a, vf b) { return vblend((vi)(a != a), a, v_lower(a, b)); }
"""

_INTEGERS = """
INLINE int64_t i_div(int64_t a, int64_t b) {
  return b == 0 ? 0 : b == -1 ? (int64_t)-(uint64_t)a : a / b;
}
INLINE int64_t i_fmod(int64_t a, int64_t b) { return b == 0 || b == -1 ? 0 : a % b; }
INLINE int64_t i_mod(int64_t a, int64_t b) {
  int64_t r = i_fmod(a, b);
  return r && (r < 0) != (b < 0) ? r + b : r;
}
INLINE int64_t i_pow(int64_t a, int64_t b) {
  if (b < 0) return a == 1 ? 1 : a == -1 ? (b & 1 ? -1 : 1) : 0;
  uint64_t r = 1, x = (uint64_t)a;  /* unsigned: wraps */
  for (; b; b >>= 1, x *= x) if (b & 1) r *= x;
  return (int64_t)r;
}
"""

_D_MISC = """
INLINE double d_fmod(double x, double y) {
  double r = __builtin_fma(-__builtin_trunc(x / y), y, x);
  r = r != 0 && (r < 0) != (x < 0) ? r + ((x < 0) != (y < 0) ? -y : y) : r;
  return __builtin_fabs(y) == __builtin_inf() && __builtin_fabs(x) < __builtin_inf() ? x : r;
}
INLINE double d_mod(double x, double y) {
  double r = d_fmod(x, y);
  return r != 0 && (r < 0) != (y < 0) ? r + y : r;
}
"""

_TO_HALF = """
/* double -> half, rounded once: the float in between is rounded to odd. (The compiler's own cast
   calls a library.) */
INLINE _Float16 to_half(double x) {
  union { float f; uint32_t i; } y = { (float)x };
  if ((double)y.f != x && x == x) {
    y.i -= __builtin_fabs((double)y.f) > __builtin_fabs(x);
    y.i |= 1;
  }
  return (_Float16)y.f;
}
"""

FUNCTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "clamps": ((), _CLAMPS),
    "v_max": (("clamps",), _MINMAX),
    "v_exp": (("clamps",), _V_EXP),
    "v_log": ((), _V_LOG),
    "v_tanh": (("clamps",), _V_TANH),
    "v_erf": (("clamps",), _V_ERF),
    "v_sigmoid": (("v_exp",), _V_SIGMOID),
    "v_mod": ((), _V_MOD),
    "v_sin": (("d_sin",), _by_lane("sin")),
    "v_cos": (("d_sin",), _by_lane("cos")),
    "v_pow": (("d_pow",), """
INLINE vf v_pow(vf x, vf y) {
  vf z; UNROLL for (int i = 0; i < LANES; ++i) z[i] = (float)d_pow(x[i], y[i]); return z;
}
"""),
    "d_exp": ((), _D_EXP),
    "d_log": ((), _D_LOG),
    "d_sin": ((), _D_SINCOS),
    "d_tanh": (("d_exp",), _D_TANH),
    "d_erf": (("d_exp",), _D_ERF),
    "d_sigmoid": (("d_exp",), _D_SIGMOID),
    "d_pow": (("d_exp", "d_log"), _D_POW),
    "d_mod": ((), _D_MISC),
    "to_half": ((), _TO_HALF),
    "integers": ((), _INTEGERS),
}  # fmt: skip
"""Name -> what it needs, its text. A text may define several functions of a kind."""


def math_text(names: Iterable[str]) -> str:
    """The C text of these functions and all they need, each once and guarded, so that kernels may
    be joined in one file."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name not in order:
            for need in FUNCTIONS[name][0]:
                visit(need)
            if name not in order:
                order.append(name)

    for name in sorted(names):
        visit(name)
    return "".join(f"#ifndef ES_{n}\n#define ES_{n}{FUNCTIONS[n][1]}#endif\n" for n in order)
