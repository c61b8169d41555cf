// As the pod TensorFlowLiteSwift 2.17 has them (tflite/swift in LiteRT's repository).
import Foundation

public protocol Delegate: AnyObject {}

public struct Tensor {
    public let name: String
    public let data: Data
}

public final class SignatureRunner {
    public func allocateTensors() throws {}
    public func copy(_ data: Data, toInputNamed name: String) throws {}
    public func invoke(with inputs: [String: Data]) throws {}
    public func output(named name: String) throws -> Tensor { Tensor(name: name, data: Data()) }
    init() {}
}

public final class Interpreter {
    public struct Options: Equatable, Hashable {
        public var threadCount: Int? = nil
        public var isXNNPackEnabled: Bool = false
        public init() {}
    }

    public var inputTensorCount: Int { 0 }
    public var outputTensorCount: Int { 0 }
    public var signatureKeys: [String] { [] }
    public convenience init(modelPath: String, options: Options? = nil, delegates: [Delegate]? = nil) throws { self.init() }
    public func invoke() throws {}
    public func input(at index: Int) throws -> Tensor { Tensor(name: "", data: Data()) }
    public func output(at index: Int) throws -> Tensor { Tensor(name: "", data: Data()) }
    @discardableResult
    public func copy(_ data: Data, toInputAt index: Int) throws -> Tensor { Tensor(name: "", data: Data()) }
    public func allocateTensors() throws {}
    public func signatureRunner(with key: String) throws -> SignatureRunner { SignatureRunner() }
    init() {}
}
