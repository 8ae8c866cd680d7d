// Kernels on the host, each instantiation by its number: KERNEL(0, …), KERNEL(1, …), …
#include <immintrin.h>

#include "cuda_emulation.h"
#include "kernels.cu"

namespace xsoftmax {
inline float widened(Half x) { return _cvtsh_ss(x.bits); }
inline void narrow(float x, Half& y) { y.bits = _cvtss_sh(x, 0); }
}  // namespace xsoftmax

using namespace xsoftmax;

#define KERNEL(NUMBER, ARGUMENTS, CLUSTER, ...)                                                     \
    extern "C" void kernel_##NUMBER(const ARGUMENTS* a, unsigned blocks, unsigned threads, unsigned bytes) { \
        emulation::run([=] { __VA_ARGS__(*a); }, blocks, threads, bytes, CLUSTER);          \
    }

extern "C" int bytes_of_arguments() { return sizeof(Arguments); }
