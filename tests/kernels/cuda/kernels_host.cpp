// Kernels on the host, each instantiation by its number.
#include "cuda_emulation.h"
#include "kernels.cu"

using namespace xsoftmax;

#define KERNEL(NUMBER, CLUSTER, ...)                                                                         \
    extern "C" void kernel_##NUMBER(const Arguments* a, unsigned blocks, unsigned threads, unsigned bytes) { \
        emulation::run([=] { __VA_ARGS__(*a); }, blocks, threads, bytes, CLUSTER);                           \
    }

extern "C" int bytes_of_arguments() { return sizeof(Arguments); }

#include "instantiations.h"
