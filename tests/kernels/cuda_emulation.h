// As much of CUDA as the kernels need, on one core: the threads of a block are coroutines that take turns.
#pragma once
#include <ucontext.h>

#include <functional>
#include <vector>

#define __global__
#define __launch_bounds__(...)
#define __shared__ static

struct Index { unsigned x; };
static Index threadIdx, blockIdx, gridDim;

namespace emulation {

struct Thread {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(128 << 10);
    long shuffles = 0, barriers = 0;
    int sent[2];
    bool done = false;
};

static std::vector<Thread> threads;
static std::vector<char> memory;
static ucontext_t scheduler;
static std::function<void()> kernel;

inline void yield() {
    unsigned me = threadIdx.x;
    swapcontext(&threads[me].context, &scheduler);
    threadIdx.x = me;
}

inline void begin() {
    kernel();
    threads[threadIdx.x].done = true;
}

// Waits until threads first … last are as far.
inline void wait(long Thread::*count, unsigned first, unsigned last) {
    long mine = threads[threadIdx.x].*count;
    for (unsigned i = first; i < last; ++i) {
        while (threads[i].*count < mine) yield();
    }
}

inline void run(std::function<void()> body, unsigned blocks, unsigned size, unsigned bytes) {
    kernel = body;
    gridDim.x = blocks;
    memory.assign(bytes + 16, 0);
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        threads.assign(size, Thread());
        for (auto& thread : threads) {
            getcontext(&thread.context);
            thread.context.uc_stack.ss_sp = thread.stack.data();
            thread.context.uc_stack.ss_size = thread.stack.size();
            thread.context.uc_link = &scheduler;
            makecontext(&thread.context, begin, 0);
        }
        for (unsigned left = size; left;) {
            for (unsigned i = 0; i < size; ++i) {
                if (threads[i].done) continue;
                threadIdx.x = i;
                swapcontext(&scheduler, &threads[i].context);
                left -= threads[i].done;
            }
        }
    }
}

}  // namespace emulation

inline int __shfl_xor_sync(unsigned, int value, int distance) {
    using namespace emulation;
    unsigned me = threadIdx.x, warp = me / 32 * 32;
    int turn = threads[me].shuffles++ % 2;
    threads[me].sent[turn] = value;
    wait(&Thread::shuffles, warp, warp + 32);
    return threads[me ^ distance].sent[turn];
}

inline void __syncthreads() {
    using namespace emulation;
    ++threads[threadIdx.x].barriers;
    wait(&Thread::barriers, 0, threads.size());
}

namespace xsoftmax {
inline void* row_space() { return (void*)((reinterpret_cast<size_t>(emulation::memory.data()) + 15) / 16 * 16); }
}  // namespace xsoftmax
