// The runner of .pte programs, through ExecuTorch's C++ Module API; it needs no torch.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/platform/runtime.h>

#include "native_runner.hpp"

// The package exports this pool and does not ship its header (extension/threadpool/threadpool.h).
namespace executorch::extension::threadpool {
class ThreadPool {
  public:
    bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool *get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

using namespace edgekit;
using executorch::aten::SizesType;
using executorch::runtime::Error;
using executorch::runtime::EValue;

void check(Error status, const char *kind, const char *what)
{
    if (status == Error::Ok)
        return;
    char number[16];
    std::snprintf(number, sizeof number, "0x%x", static_cast<unsigned>(status));
    throw Failure{kind, std::string("executorch ") + what + " (error " + number + ")"};
}

class ExecuTorch : public Program {
  public:
    explicit ExecuTorch(const Request &request)
        : module_(request.text("path"), executorch::extension::Module::LoadMode::Mmap)
    {
        executorch::runtime::runtime_init();
        if (auto *pool = executorch::extension::threadpool::get_threadpool())
            pool->_unsafe_reset_threadpool(static_cast<uint32_t>(request.count("threads")));
        check(module_.load_method("forward"), "load", "cannot load the program");
    }

    void allocate(const std::vector<Shape> &shapes) override
    {
        auto meta = module_.method_meta("forward");
        check(meta.error(), "load", "does not tell its inputs");
        if (meta->num_inputs() != shapes.size())
            throw Failure{"run", "the program has " + std::to_string(meta->num_inputs()) + " inputs, and " +
                                     std::to_string(shapes.size()) + " are given"};
        for (size_t i = 0; i < shapes.size(); i++) {
            auto tensor = meta->input_tensor_meta(i);
            check(tensor.error(), "load", "has an input that is no tensor");
            size_t size = executorch::runtime::elementSize(tensor->scalar_type());
            for (int64_t dimension : shapes[i])
                size *= static_cast<size_t>(dimension);
            held_.emplace_back(size);
            std::vector<SizesType> sizes(shapes[i].begin(), shapes[i].end());
            tensors_.push_back(executorch::extension::from_blob(held_[i].data(), sizes, tensor->scalar_type()));
            values_.emplace_back(*tensors_[i]);
        }
    }

    size_t input_bytes(size_t position) override { return held_[position].size(); }

    void feed(size_t position, const uint8_t *data) override
    {
        std::memcpy(held_[position].data(), data, held_[position].size());
    }

    void invoke() override
    {
        auto done = module_.execute("forward", values_);
        check(done.error(), "run", "failed while running the program");
        results_ = std::move(done.get());
    }

    size_t outputs() override { return results_.size(); }

    void read(size_t position, void (*take)(const Output &, void *), void *context) override
    {
        if (!results_[position].isTensor())
            throw Failure{"run", "output " + std::to_string(position) + " is no tensor"};
        auto tensor = results_[position].toTensor();
        auto sizes = tensor.sizes();
        take({Shape(sizes.begin(), sizes.end()), static_cast<const uint8_t *>(tensor.const_data_ptr()), tensor.nbytes()},
             context);
    }

  private:
    executorch::extension::Module module_;
    std::vector<Bytes> held_;
    std::vector<executorch::extension::TensorPtr> tensors_;
    std::vector<EValue> values_, results_;
};

}  // namespace

std::unique_ptr<Program> edgekit::open_program(const Request &request)
{
    return std::make_unique<ExecuTorch>(request);
}

int main(int count, char **words) { return edgekit::main_of(count, words); }
