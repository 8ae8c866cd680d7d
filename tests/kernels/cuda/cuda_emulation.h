// As much of CUDA as the kernels need, on one core: the threads of a block, or of a cluster, are coroutines that take
// turns.
#pragma once
#include <ucontext.h>

#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define XS_CLUSTERS 1

struct Index { unsigned x; };
static Index threadIdx, blockIdx, gridDim;

namespace emulation {

constexpr size_t stack_bytes = 128 << 10;

struct Thread {
    Index index, block;
    ucontext_t context;
    long shuffles = 0, warp_barriers = 0, barriers = 0, cluster_barriers = 0;
    int sent[2];
    bool done = false;
};

static std::vector<Thread> threads;  // of all blocks of a cluster
static std::vector<std::unique_ptr<char[]>> stacks;  // kept from block to block
static unsigned current, block_size, dynamic_bytes;
static std::map<std::pair<const void*, unsigned>, std::vector<char>> memory;  // by user and block
static ucontext_t scheduler;
static std::function<void()> kernel;

inline void resume(unsigned i) {
    current = i, threadIdx = threads[i].index, blockIdx = threads[i].block;
}

inline void yield() {
    unsigned me = current;
    swapcontext(&threads[me].context, &scheduler);
    resume(me);
}

inline void begin() {
    kernel();
    threads[current].done = true;
}

// Waits until threads first … last are as far.
inline void wait(long Thread::*count, unsigned first, unsigned last) {
    long mine = ++(threads[current].*count);
    for (unsigned i = first; i < last; ++i) {
        while (threads[i].*count < mine) yield();
    }
}

inline void* block_memory(const void* user, unsigned block, size_t bytes) {
    auto& space = memory[{user, block}];
    if (space.empty()) space.resize(bytes + 16);
    return reinterpret_cast<void*>((reinterpret_cast<size_t>(space.data()) + 15) / 16 * 16);
}

inline void run_cluster(unsigned first_block, unsigned blocks) {
    memory.clear();
    threads.assign(blocks * block_size, Thread());
    while (stacks.size() < threads.size()) stacks.emplace_back(new char[stack_bytes]);
    for (unsigned i = 0; i < threads.size(); ++i) {
        Thread& thread = threads[i];
        thread.index.x = i % block_size, thread.block.x = first_block + i / block_size;
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = stacks[i].get();
        thread.context.uc_stack.ss_size = stack_bytes;
        thread.context.uc_link = &scheduler;
        makecontext(&thread.context, begin, 0);
    }
    for (unsigned left = threads.size(); left;) {
        for (unsigned i = 0; i < threads.size(); ++i) {
            if (threads[i].done) continue;
            resume(i);
            swapcontext(&scheduler, &threads[i].context);
            left -= threads[i].done;
        }
    }
}

inline void run(std::function<void()> body, unsigned blocks, unsigned size, unsigned bytes, unsigned in_cluster) {
    kernel = body, gridDim.x = blocks, block_size = size, dynamic_bytes = bytes;
    for (unsigned block = 0; block < blocks; block += in_cluster) run_cluster(block, in_cluster);
}

}  // namespace emulation

inline int __shfl_xor_sync(unsigned, int value, int distance) {
    using namespace emulation;
    unsigned me = current, warp = me / 32 * 32;
    int turn = threads[me].shuffles % 2;
    threads[me].sent[turn] = value;
    wait(&Thread::shuffles, warp, warp + 32);
    return threads[me ^ distance].sent[turn];
}

inline void __syncwarp() {
    unsigned first = emulation::current / 32 * 32;
    emulation::wait(&emulation::Thread::warp_barriers, first, first + 32);
}

inline void __syncthreads() {
    using namespace emulation;
    unsigned first = current / block_size * block_size;
    wait(&Thread::barriers, first, first + block_size);
}

namespace xsoftmax {

inline void* row_space() {
    static char user;
    return emulation::block_memory(&user, blockIdx.x, emulation::dynamic_bytes);
}

template <class User, class S, int n>
S* shared_space() {
    static char user;
    return static_cast<S*>(emulation::block_memory(&user, blockIdx.x, n * sizeof(S)));
}

inline void cluster_barrier() {
    using namespace emulation;
    wait(&Thread::cluster_barriers, 0, threads.size());
}

template <class S>
S of_block(const S* here, int block) {
    using namespace emulation;
    unsigned first = threads[0].block.x;
    for (auto& entry : memory) {
        const char* space = entry.second.data();
        const char* address = reinterpret_cast<const char*>(here);
        if (entry.first.second != blockIdx.x || address < space || address >= space + entry.second.size()) continue;
        return *static_cast<S*>(block_memory(entry.first.first, first + block, 0));
    }
    return *here;
}

}  // namespace xsoftmax
