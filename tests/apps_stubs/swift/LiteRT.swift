// As LiteRT's Swift package 2.2.0 has them (litert/swift in its repository).
import Foundation

public enum Accelerator: Int32 { case none = 0, cpu = 1, gpu = 2, npu = 4 }

public final class Environment {
    public enum Option { case none }
    public init(options: [Option] = []) throws {}
}

public final class Options {
    public init() throws {}
    public func setHardwareAccelerators(_ accelerators: Set<Accelerator>) throws {}
}

public final class TensorBuffer {
    public func write<T>(_ data: [T]) throws {}
    public func read<T>() throws -> [T] { [] }
}

public final class CompiledModel {
    public init(filePath: String, environment: Environment, options: Options? = nil) throws {}
    public func inputCount(signatureIndex: Int = 0) throws -> Int { 0 }
    public func outputCount(signatureIndex: Int = 0) throws -> Int { 0 }
    public func inputName(inputIndex: Int, signatureIndex: Int = 0) throws -> String { "" }
    public func outputName(outputIndex: Int, signatureIndex: Int = 0) throws -> String { "" }
    public func createInputBuffers(signatureIndex: Int = 0) throws -> [TensorBuffer] { [] }
    public func createOutputBuffers(signatureIndex: Int = 0) throws -> [TensorBuffer] { [] }
    public func run(inputs: [TensorBuffer], outputs: [TensorBuffer], options: Options? = nil, signatureIndex: Int = 0) throws {}
    public func run(inputs: [TensorBuffer], options: Options? = nil, signatureIndex: Int = 0) throws -> [TensorBuffer] { [] }
}
