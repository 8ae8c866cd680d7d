// Elements in memory: 16-bit formats without NVIDIA's headers, vectors, labels of any integer dtype.

namespace xsoftmax {

struct Half { unsigned short bits; };
struct Brain { unsigned short bits; };

#ifdef __CUDACC__
XS_FUNCTION float widened(Half x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
XS_FUNCTION void narrow(float x, Half& y) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
// With -ftz=true a cast would lose subnormal numbers.
XS_FUNCTION double to_double(float x) {
    double y;
    asm("cvt.f64.f32 %0, %1;" : "=d"(y) : "f"(x));
    return y;
}
XS_FUNCTION float to_float(double x) {
    float y;
    asm("cvt.rn.f32.f64 %0, %1;" : "=f"(y) : "d"(x));
    return y;
}
#else
XS_FUNCTION double to_double(float x) { return x; }
XS_FUNCTION float to_float(double x) { return float(x); }
#endif
XS_FUNCTION double to_double(double x) { return x; }

XS_FUNCTION double widened(double x) { return x; }
XS_FUNCTION float widened(float x) { return x; }
XS_FUNCTION float widened(Brain x) { return from_bits(int(unsigned(x.bits) << 16)); }

XS_FUNCTION void narrow(double x, double& y) { y = x; }
XS_FUNCTION void narrow(double x, float& y) { y = to_float(x); }
XS_FUNCTION void narrow(float x, Brain& y) {  // to the nearest, ties to even
    unsigned n = unsigned(bits(x));
    n = x == x ? n + 0x7fffu + ((n >> 16) & 1u) : 0x7fc00000u;
    y.bits = (unsigned short)(n >> 16);
}
template <class T>
XS_FUNCTION void narrow(double x, T& y) {
    narrow(float(x), y);
}
XS_FUNCTION void narrow(float x, float& y) { y = x; }

// No access is of more than 16 bytes, nor is more alignment known.
// An element as a number of a row's arithmetic.
template <class Real, class E>
XS_FUNCTION Real number(E element) {
    if constexpr (sizeof(Real) == 8) {
        return to_double(widened(element));
    } else {
        return Real(widened(element));
    }
}

template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vector {
    T at[N];
};

// A label, or −1: unsigned ones beyond int64 are none. `kind`: bytes, negative for unsigned.
XS_FUNCTION Int64 label_at(const void* labels, int kind, Int64 i) {
    switch (kind) {
        case 1: return static_cast<const signed char*>(labels)[i];
        case 2: return static_cast<const short*>(labels)[i];
        case 4: return static_cast<const int*>(labels)[i];
        case 8: return static_cast<const Int64*>(labels)[i];
        case -1: return static_cast<const unsigned char*>(labels)[i];
        case -2: return static_cast<const unsigned short*>(labels)[i];
        case -4: return static_cast<const unsigned*>(labels)[i];
        default: {
            Int64 label = static_cast<const Int64*>(labels)[i];
            return label < 0 ? -1 : label;
        }
    }
}

}  // namespace xsoftmax
