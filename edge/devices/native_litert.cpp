// The runner of .tflite programs, through the C API that LiteRT's shared library exports.
//
// Its Python package has no headers: these declarations follow litert/c of LiteRT 2 (litert_common.h, litert_model.h,
// litert_compiled_model.h, litert_options.h, litert_opaque_options.h, litert_tensor_buffer.h, litert_layout.h).
#include "native_runner.hpp"

namespace {

struct Layout {
    unsigned rank : 7, has_strides : 1;
    int32_t sizes[8];
    uint32_t strides[8];
};
struct TensorType {
    int element;
    Layout layout;
};
using Handle = void *;
enum { OK = 0, CPU = 1, READ = 0, WRITE = 1 };

}  // namespace

extern "C" {
int LiteRtCreateEnvironment(int, const void *, Handle *);
int LiteRtCreateModelFromFile(Handle, const char *, Handle *);
int LiteRtCreateOptions(Handle *);
int LiteRtSetOptionsHardwareAccelerators(Handle, int);
int LiteRtCreateOpaqueOptions(const char *, void *, void (*)(void *), Handle *);
int LiteRtAddOpaqueOptions(Handle, Handle);
int LiteRtCreateCompiledModel(Handle, Handle, Handle, Handle *);
int LiteRtGetNumModelSignatures(Handle, size_t *);
int LiteRtGetModelSignature(Handle, size_t, Handle *);
int LiteRtGetSignatureKey(Handle, const char **);
int LiteRtGetNumSignatureInputs(Handle, size_t *);
int LiteRtGetNumSignatureOutputs(Handle, size_t *);
int LiteRtGetSignatureInputTensorByIndex(Handle, size_t, Handle *);
int LiteRtGetSignatureOutputTensorByIndex(Handle, size_t, Handle *);
int LiteRtGetTensorIndex(Handle, uint32_t *);
int LiteRtGetRankedTensorType(Handle, TensorType *);
int LiteRtGetCompiledModelInputTensorLayout(Handle, size_t, size_t, Layout *);
int LiteRtGetCompiledModelOutputTensorLayouts(Handle, size_t, size_t, Layout *, bool);
int LiteRtCompiledModelResizeInputTensor(Handle, size_t, size_t, const int *, size_t);
int LiteRtGetCompiledModelInputBufferRequirements(Handle, size_t, size_t, Handle *);
int LiteRtGetCompiledModelOutputBufferRequirements(Handle, size_t, size_t, Handle *);
int LiteRtCreateManagedTensorBufferFromRequirements(Handle, const TensorType *, Handle, Handle *);
int LiteRtGetTensorBufferPackedSize(Handle, size_t *);
int LiteRtLockTensorBuffer(Handle, void **, int);
int LiteRtUnlockTensorBuffer(Handle);
int LiteRtRunCompiledModel(Handle, size_t, size_t, Handle *, size_t, Handle *);
}

namespace {

using namespace edgekit;

void check(int status, const char *kind, const char *what)
{
    if (status != OK)
        throw Failure{kind, std::string("the runtime ") + what + " (LiteRT status " + std::to_string(status) + ")"};
}

struct End {
    TensorType type;
    uint32_t tensor;
    Handle buffer = nullptr;
};

class LiteRT : public Program {
  public:
    explicit LiteRT(const Request &request) : request_(request)
    {
        check(LiteRtCreateEnvironment(0, nullptr, &environment_), "load", "does not start");
        check(LiteRtCreateModelFromFile(environment_, request.text("path").c_str(), &model_), "load",
              "cannot load the program");
        choose_signature();
        compile();
        inputs_ = positions(inputs(), request.integers("input_tensors"));
        outputs_ = positions(results_, request.integers("output_tensors"));
    }

    void allocate(const std::vector<Shape> &shapes) override
    {
        if (shapes.size() != inputs_.size())
            throw Failure{"run", "the program has " + std::to_string(inputs_.size()) + " inputs, and " +
                                     std::to_string(shapes.size()) + " are given"};
        for (size_t i = 0; i < shapes.size(); i++)
            resize(inputs_[i], shapes[i]);
        for (size_t i = 0; i < fed_.size(); i++)
            make_input(i);
        make_outputs();
    }

    size_t input_bytes(size_t position) override
    {
        size_t size = 0;
        check(LiteRtGetTensorBufferPackedSize(fed_[inputs_[position]].buffer, &size), "run", "does not tell a size");
        return size;
    }

    void feed(size_t position, const uint8_t *data) override
    {
        Handle buffer = fed_[inputs_[position]].buffer;
        void *place = nullptr;
        size_t size = input_bytes(position);
        check(LiteRtLockTensorBuffer(buffer, &place, WRITE), "run", "does not take the input");
        std::memcpy(place, data, size);
        check(LiteRtUnlockTensorBuffer(buffer), "run", "does not take the input");
    }

    void invoke() override
    {
        std::vector<Handle> in, out;
        for (const auto &end : fed_)
            in.push_back(end.buffer);
        for (const auto &end : results_)
            out.push_back(end.buffer);
        check(LiteRtRunCompiledModel(compiled_, signature_index_, in.size(), in.data(), out.size(), out.data()), "run",
              "failed while running the program");
    }

    size_t outputs() override { return outputs_.size(); }

    void read(size_t position, void (*take)(const Output &, void *), void *context) override
    {
        const End &end = results_[outputs_[position]];
        const Layout &layout = end.type.layout;
        void *place = nullptr;
        size_t size = 0;
        check(LiteRtGetTensorBufferPackedSize(end.buffer, &size), "run", "does not tell a size");
        check(LiteRtLockTensorBuffer(end.buffer, &place, READ), "run", "does not give the output");
        take({Shape(layout.sizes, layout.sizes + layout.rank), static_cast<const uint8_t *>(place), size}, context);
        check(LiteRtUnlockTensorBuffer(end.buffer), "run", "does not give the output");
    }

  private:
    // The signature that edgekit takes: `serving_default`, else the first.
    void choose_signature()
    {
        size_t count = 0;
        check(LiteRtGetNumModelSignatures(model_, &count), "load", "finds no signature");
        for (size_t i = 0; i < count; i++) {
            const char *key = nullptr;
            check(LiteRtGetModelSignature(model_, i, &signature_), "load", "finds no signature");
            if (LiteRtGetSignatureKey(signature_, &key) == OK && key && std::string(key) == "serving_default") {
                signature_index_ = i;
                return;
            }
        }
        check(LiteRtGetModelSignature(model_, 0, &signature_), "load", "finds no signature");
    }

    void compile()
    {
        static const std::map<std::string, std::string> kernels = {
            {"xnnpack", ""}, {"builtin", "kernel_mode = \"builtin\"\n"}};
        auto found = kernels.find(request_.text("kernels"));
        if (found == kernels.end())
            throw Failure{"request", "the kernel set " + request_.text("kernels") +
                                         " is not among those of LiteRT's C API: builtin, xnnpack"};
        Handle options = nullptr, cpu = nullptr;
        check(LiteRtCreateOptions(&options), "load", "does not take options");
        check(LiteRtSetOptionsHardwareAccelerators(options, CPU), "load", "does not take options");
        std::string text = found->second + "num_threads = " + request_.text("threads") + "\n";
        check(LiteRtCreateOpaqueOptions("xnnpack", strdup(text.c_str()), std::free, &cpu), "load", "does not take options");
        check(LiteRtAddOpaqueOptions(options, cpu), "load", "does not take options");
        check(LiteRtCreateCompiledModel(environment_, model_, options, &compiled_), "load", "cannot load the program");
    }

    std::vector<End> &inputs()
    {
        size_t in = 0, out = 0;
        check(LiteRtGetNumSignatureInputs(signature_, &in), "load", "does not tell its inputs");
        check(LiteRtGetNumSignatureOutputs(signature_, &out), "load", "does not tell its outputs");
        for (size_t i = 0; i < in; i++)
            fed_.push_back(end_of(LiteRtGetSignatureInputTensorByIndex, i));
        for (size_t i = 0; i < out; i++)
            results_.push_back(end_of(LiteRtGetSignatureOutputTensorByIndex, i));
        return fed_;
    }

    End end_of(int (*get)(Handle, size_t, Handle *), size_t index)
    {
        Handle tensor = nullptr;
        End end{};
        check(get(signature_, index, &tensor), "load", "does not tell its tensors");
        check(LiteRtGetTensorIndex(tensor, &end.tensor), "load", "does not tell its tensors");
        check(LiteRtGetRankedTensorType(tensor, &end.type), "load", "has a tensor without a shape");
        return end;
    }

    static std::vector<size_t> positions(const std::vector<End> &ends, const std::vector<long> &wanted)
    {
        std::vector<size_t> found;
        for (long tensor : wanted)
            for (size_t i = 0; i < ends.size(); i++)
                if (static_cast<long>(ends[i].tensor) == tensor) {
                    found.push_back(i);
                    break;
                }
        if (found.size() != wanted.size())
            throw Failure{"load", "the program's signature has other tensors than it had on the host"};
        return found;
    }

    void resize(size_t index, const Shape &shape)
    {
        Layout &layout = fed_[index].type.layout;
        if (shape.size() > 8)
            throw Failure{"run", "a tensor has more than 8 dimensions"};
        if (Shape(layout.sizes, layout.sizes + layout.rank) == shape)
            return;
        std::vector<int> sizes(shape.begin(), shape.end());
        check(LiteRtCompiledModelResizeInputTensor(compiled_, signature_index_, index, sizes.data(), sizes.size()), "run",
              "does not take an input of this shape");
        layout.rank = static_cast<unsigned>(shape.size()) & 127;
        std::copy(sizes.begin(), sizes.end(), layout.sizes);
    }

    void make_input(size_t index)
    {
        Handle needs = nullptr;
        End &end = fed_[index];
        check(LiteRtGetCompiledModelInputBufferRequirements(compiled_, signature_index_, index, &needs), "run",
              "does not allocate the input");
        check(LiteRtCreateManagedTensorBufferFromRequirements(environment_, &end.type, needs, &end.buffer), "run",
              "does not allocate the input");
    }

    void make_outputs()
    {
        std::vector<Layout> layouts(results_.size());
        check(LiteRtGetCompiledModelOutputTensorLayouts(compiled_, signature_index_, layouts.size(), layouts.data(), true),
              "run", "does not tell the shapes of its outputs");
        for (size_t i = 0; i < results_.size(); i++) {
            Handle needs = nullptr;
            results_[i].type.layout = layouts[i];
            check(LiteRtGetCompiledModelOutputBufferRequirements(compiled_, signature_index_, i, &needs), "run",
                  "does not allocate the output");
            check(LiteRtCreateManagedTensorBufferFromRequirements(environment_, &results_[i].type, needs,
                                                                  &results_[i].buffer),
                  "run", "does not allocate the output");
        }
    }

    Request request_;
    size_t signature_index_ = 0;
    Handle environment_ = nullptr, model_ = nullptr, signature_ = nullptr, compiled_ = nullptr;
    std::vector<End> fed_, results_;
    std::vector<size_t> inputs_, outputs_;
};

}  // namespace

std::unique_ptr<Program> edgekit::open_program(const Request &request)
{
    return std::make_unique<LiteRT>(request);
}

int main(int count, char **words) { return edgekit::main_of(count, words); }
